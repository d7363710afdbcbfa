# SPDX-License-Identifier: Apache-2.0
"""What the nodes ask of the graph's host: choices for their widgets, folders of pictures, text in a node.

The pack's own example pictures are listed as ``graft-examples/<name>`` beside the user's folders.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..plain import markup
from ..registry import unknown
from ..trainers.data import EXTENSIONS
from .files import paths
from .runs.history import prompt_server

EXAMPLES = "graft-examples"
EXAMPLES_FOLDER = Path(__file__).resolve().parents[1] / "assets" / "concepts"
_DEPTH = 4
_MAX_FOLDERS = 2000


def sampler_names() -> list[str]:
    """The samplers of the host's KSampler."""
    import comfy.samplers

    return list(comfy.samplers.KSampler.SAMPLERS)


def scheduler_names() -> list[str]:
    """The schedulers of the host's KSampler."""
    import comfy.samplers

    return list(comfy.samplers.KSampler.SCHEDULERS)


def picture_folders() -> list[str]:
    """Folders that hold pictures, then those that hold such folders, then the pack's examples; read anew each time."""
    import folder_paths

    bases = [folder_paths.get_input_directory()]
    if "datasets" in folder_paths.folder_names_and_paths:
        bases += folder_paths.get_folder_paths("datasets")
    found = {name for base in bases for name in _with_pictures(Path(base))}
    above = {name.rpartition("/")[0] for name in found} - found - {""}
    return [
        *sorted(found, key=str.casefold),
        *sorted(above, key=str.casefold),
        *sorted(_examples()),
    ]


def picture_folder(name: str) -> Path:
    """The folder that a name of ``picture_folders``, or one that the user typed, stands for.

    Raises:
        ValueError: There is no such folder, or it is outside of those that may be read.
    """
    parts = str(name).strip().replace("\\", "/").strip("/").split("/")
    if parts[0] != EXAMPLES:
        return paths.input_folder(name)
    known = _examples()
    wanted = "/".join(parts)
    if wanted not in known:
        raise ValueError(unknown("example folder", wanted, known))
    return paths.inside(EXAMPLES_FOLDER, known[wanted])


def _examples() -> dict[str, str]:
    """The pack's folders of pictures, and those that hold a folder for each class, by the name of their choice."""
    inside = set(_with_pictures(EXAMPLES_FOLDER))
    return {
        f"{EXAMPLES}/{name}": name
        for name in inside | {n.rpartition("/")[0] for n in inside} - {""}
    }


def show_text(node_id: str | None, text: str) -> None:
    """Show ``text`` inside a node, where the host can; it is text, whatever a frontend takes it for."""
    server: Any = prompt_server()
    show = getattr(server, "send_progress_text", None)
    if show is not None and node_id is not None:
        show(markup(text), node_id, getattr(server, "client_id", None))


def _with_pictures(base: Path) -> Iterator[str]:
    """Names of the folders below ``base`` that hold a picture, with forward slashes."""
    pending, seen = [(base, 0)], 0
    while pending and seen < _MAX_FOLDERS:
        folder, depth = pending.pop()
        seen += 1
        has_picture = False
        for entry in _entries(folder):
            if entry.name.startswith("."):
                continue
            # Links to folders are not followed: they may lead out, or round in circles.
            if entry.is_dir(follow_symlinks=False):
                if depth < _DEPTH:
                    pending.append((Path(entry.path), depth + 1))
            elif not has_picture:
                has_picture = os.path.splitext(entry.name)[1].lower() in EXTENSIONS  # noqa: PTH122 - called per file
        if has_picture and depth > 0:
            yield folder.relative_to(base).as_posix()


def _entries(folder: Path) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
