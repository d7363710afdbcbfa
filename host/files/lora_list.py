# SPDX-License-Identifier: Apache-2.0
"""LoRA files of several steps of a training, as Load LoRA lists them, for comparison grids.

A file's step is in its name: ``cat_step000500`` as Graft writes it, ``cat-step00000500`` as sd-scripts does.
"""

import contextlib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...loaders import lora_file
from ...plain import plain
from ...registry import unknown
from . import paths

_STEP = re.compile(r"(?P<name>.+)[_-]step(?P<step>\d{1,12})(?P<copy>_\d{5})?")
_OWN = "graft."  # metadata that say how a file was trained
_DIFFERS = "graft.steps"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listed:
    """One file: its name as the host lists it, the LoRA's without step and folder, and the step."""

    file: str
    name: str
    step: int

    @property
    def label(self) -> str:
        """The file's name without folder and extension; labels sort as steps do."""
        return os.path.splitext(self.file.replace("\\", "/").rpartition("/")[2])[0]  # noqa: PTH122 - a name, no path


def find(pattern: str, metadata: Mapping[str, str] | None = None) -> list[Listed]:
    """The files of a LoRA by their steps.

    Args:
        pattern: The LoRA's name; ``*`` stands for anything, and a folder may be before it.
        metadata: Of an adapter: only files that were trained with the same settings on the same data are meant.

    Returns:
        One or more, by step and name.

    Raises:
        ValueError: There is none; near names are listed.
    """
    wanted = pattern.strip().replace("\\", "/")
    if not wanted:
        raise ValueError(
            "The name is empty: give the name of a LoRA that was trained with save_every, or connect its ADAPTER."
        )
    known, shown = _listed(), plain(wanted, 100)
    found = [one for one in known if _matches(one, wanted)]
    if not found:
        names = {one.name for one in known}
        hint = unknown("LoRA with steps", wanted, names) if names else "No LoRA there has any."
        raise ValueError(
            f"No LoRA file is called {shown}_step... in the list of Load LoRA: train with save_every. {hint}"
        )
    if metadata is not None:
        count = len(found)
        found = [one for one in found if _is_of(one, metadata)]
        if not found:
            raise ValueError(
                f"{count} LoRA files are called {shown}_step..., but none is of the training whose ADAPTER is "
                "connected: set save_every there, or disconnect it."
            )
    return sorted(found, key=lambda one: (one.step, one.name, one.file))


def fingerprint(pattern: str) -> tuple[Any, ...]:
    """What changes when the files that ``find`` would list do: names, sizes and times."""
    import folder_paths

    try:
        found = find(pattern)
    except ValueError:
        return ()
    rows = []
    for one in found:
        path = folder_paths.get_full_path("loras", one.file)
        if path is None:
            continue
        with contextlib.suppress(OSError):  # it went away meanwhile
            status = Path(path).stat()
            rows.append((one.file, status.st_size, status.st_mtime_ns))
    return tuple(rows)


def _listed() -> list[Listed]:
    import folder_paths

    paths.loras_folder()
    paths.refresh_loras()
    found = []
    for file in folder_paths.get_filename_list("loras"):
        folder, _, base = file.replace("\\", "/").rpartition("/")
        match = _STEP.fullmatch(os.path.splitext(base)[0])  # noqa: PTH122 - a name, no path
        if match:
            name = f"{folder}/{match['name']}" if folder else match["name"]
            found.append(Listed(file, name, int(match["step"])))
    return found


def _matches(one: Listed, wanted: str) -> bool:
    return any(_fits(wanted, name) for name in (one.name, one.name.rpartition("/")[2]))


def _fits(pattern: str, name: str) -> bool:
    """Whether ``name`` is ``pattern``, in which ``*`` is any text; one pass, whatever a workflow asks for."""
    first, *parts = pattern.split("*")
    if not parts:
        return name == first
    last = parts.pop()
    if not name.startswith(first) or len(name) < len(first) + len(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in parts:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return name.endswith(last)


def _is_of(one: Listed, metadata: Mapping[str, str]) -> bool:
    """Whether a file was trained as these metadata say, whatever the step."""
    import folder_paths

    path = folder_paths.get_full_path("loras", one.file)
    if path is None or not path.endswith(".safetensors"):
        return False
    try:
        own = lora_file.metadata(Path(path))
    except (OSError, ValueError) as error:
        _log.warning("%s is left out of the list: %s", one.file, error)
        return False
    return _settings(own) == _settings(metadata)


def _settings(metadata: Mapping[str, str]) -> dict[str, str]:
    return {
        key: value for key, value in metadata.items() if key.startswith(_OWN) and key != _DIFFERS
    }
