# SPDX-License-Identifier: Apache-2.0
"""LoRA files to choose from: those that the host's Load LoRA lists, and the pack's own examples.

Only safetensors files are listed: the others are pickles.
"""

import contextlib
from pathlib import Path

from ...adapters.file import AdapterFile
from ...adapters.tokens import BUNDLE
from ...loaders import alphas, dialects, lora_file, source
from ...loaders.finite import refuse_not_finite
from ...plain import plain
from ...registry import unknown
from . import paths

EXAMPLES = "graft-examples"
EXAMPLES_FOLDER = Path(__file__).resolve().parents[2] / "assets" / "loras"
SUFFIX = ".safetensors"


def names() -> list[str]:
    """The user's LoRA files, then the pack's examples; read anew each time."""
    import folder_paths

    with contextlib.suppress(OSError, ValueError):  # a folder that cannot be made has nothing in it
        paths.loras_folder()
    listed = [
        name.replace("\\", "/")
        for name in folder_paths.get_filename_list("loras")
        if name.lower().endswith(SUFFIX)
    ]
    return [*sorted(listed, key=str.casefold), *_examples()]


def path(name: str) -> Path:
    """The file that a name of ``names`` stands for.

    Raises:
        ValueError: There is no such file among them.
    """
    import folder_paths

    wanted = str(name).strip().replace("\\", "/")
    if wanted in _examples():
        return paths.inside(EXAMPLES_FOLDER, wanted.removeprefix(f"{EXAMPLES}/"))
    known = names()
    found = folder_paths.get_full_path("loras", wanted) if wanted in known else None
    if found is None:
        raise ValueError(unknown("LoRA file", wanted, known))
    return Path(found)


def load(name: str) -> AdapterFile:
    """Read a LoRA file.

    Args:
        name: One of ``names``.

    Raises:
        ValueError: There is no such file, it is broken, it holds no LoRA, or values that are no numbers.
    """
    file = path(name)
    name = plain(name)
    found = lora_file.names(file)
    if not dialects.is_lora(found) and not any(key.startswith(BUNDLE) for key in found):
        raise ValueError(
            f"'{name}' holds no LoRA: none of its {len(found)} tensors is one's, for example "
            f"{', '.join(found[:3]) or 'none'}. LoHa, LoKr and full weights cannot be trained further."
        )
    return _whole(file, name)


def load_any(name: str) -> AdapterFile:
    """Read a file of any kind of adapter, to use it.

    Args:
        name: One of ``names``.

    Raises:
        ValueError: There is no such file, it is broken, or holds values that are no numbers.
    """
    return _whole(path(name), plain(name))


def load_as_is(name: str) -> AdapterFile:
    """Read a file to look into it, whatever its numbers are.

    Args:
        name: One of ``names``.

    Raises:
        ValueError: There is no such file, or it is no safetensors file or cut off.
    """
    return lora_file.read(path(name))


def opened(name: str) -> source.Source:
    """A file of any kind of adapter, of which only what is asked for is read.

    Args:
        name: One of ``names``.

    Raises:
        ValueError: There is no such file, or it is no safetensors file, cut off or empty.
    """
    return source.on_disk(path(name))


def fingerprint(name: str) -> str:
    """What changes with the file, and with PEFT's settings beside it: path, size and time."""
    file = path(name)
    files = [at for at in (file, alphas.file_beside(file)) if at is not None]
    return " ".join(map(paths.fingerprint, files))


def _examples() -> list[str]:
    return sorted(f"{EXAMPLES}/{file.name}" for file in EXAMPLES_FOLDER.glob(f"*{SUFFIX}"))


def _whole(file: Path, name: str) -> AdapterFile:
    read = lora_file.read(file)
    remedy = "The training that made it broke: take a file of an earlier step, or make it anew."
    refuse_not_finite(f"'{name}'", read.tensors, remedy)
    return read
