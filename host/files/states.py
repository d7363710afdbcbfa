# SPDX-License-Identifier: Apache-2.0
"""Training states as files: safetensors with JSON in the header, written at once and whole, with a checksum."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ...loaders import lora_file
from ...loaders.finite import refuse_not_finite
from ...plain import plain
from ...trainers.state import State
from ...trainers.state_pack import pack, unpack, weights
from . import paths

SUFFIX = ".state.safetensors"
_STATE, _CHECKSUM = "graft.state", "graft.checksum"


def states_folder() -> Path:
    """``output/graft/states``, where Save State puts what it saves."""
    return paths.inside(paths.output_folder(), "graft/states")


def names() -> list[str]:
    """The files of states below ``output/graft``, in the order of their names; read anew each time."""
    base = paths.inside(paths.output_folder(), "graft")
    found = [*base.glob(f"states/*{SUFFIX}"), *base.glob(f"*/*{SUFFIX}")] if base.is_dir() else []
    listed = {name_of(path) for path in found if path.is_file()}
    return sorted(listed, key=lambda name: (not name.startswith("states/"), name.casefold()))


def name_of(path: Path) -> str:
    """What ``names`` calls the file of a state."""
    return paths.relative_to_output(path).removeprefix("graft/")


def find(name: str) -> Path:
    """The file that a name of ``names`` stands for.

    Raises:
        ValueError: It leads out of the folder, is no state, or is not there.
    """
    base = paths.inside(paths.output_folder(), "graft")
    path = paths.inside(base, str(name))
    if not path.name.endswith(SUFFIX) or not path.is_file():
        raise ValueError(
            f"There is no state '{plain(name, 200)}' in output/graft. Press R to read the list again, or save one with "
            "Save State."
        )
    return path


def writer(state: State) -> Callable[[Path], None]:
    """What writes the file of a state at the path that it is given; equal states give equal bytes."""
    tensors, text = pack(state)
    metadata = {_STATE: text, _CHECKSUM: _checksum(tensors, text)}
    return lambda path: lora_file.write(path, tensors, metadata)


def save(folder: Path, name: str, state: State) -> Path:
    """Write a state under the next free name, unless it is there already.

    Args:
        folder: Where to, in the output folder.
        name: Of the file, without its extension.
        state: What to write.

    Returns:
        The file.

    Raises:
        ValueError: The name cannot be a file's.
        OSError: The disk is full, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return paths.write_once(folder, name, SUFFIX, writer(state))


def load(path: Path) -> State:
    """Read a state.

    Args:
        path: The file.

    Returns:
        The state, bit for bit as it was saved.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is cut off, changed, of another version, no state, or has values that are no numbers.
    """
    read = lora_file.read(path)
    text, name = read.metadata.get(_STATE), plain(path.name)
    if text is None:
        raise ValueError(
            f"'{name}' is no training state: Load LoRA loads a LoRA; a state is what Save State wrote."
        )
    if _checksum(read.tensors, text) != read.metadata.get(_CHECKSUM):
        raise ValueError(
            f"'{name}' is not as it was saved: its checksum differs. Take another state, or begin anew."
        )
    remedy = "Take the state of an earlier step, or begin anew."
    refuse_not_finite(f"'{name}'", weights(read.tensors), remedy)
    try:
        return unpack(read.tensors, text)
    except ValueError as error:
        raise ValueError(f"'{name}' cannot be read as a state: {error}.") from error


def _checksum(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    sha = hashlib.sha256()
    for piece in lora_file.serialize(tensors, {_STATE: text}):
        sha.update(piece)
    return sha.hexdigest()
