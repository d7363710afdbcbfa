# SPDX-License-Identifier: Apache-2.0
"""What a browser may know of the places of files: those below the host's own folders, and the names of others."""

import re
from pathlib import Path

# An absolute path in quotes, as the texts of the system's errors have it: of any system, whatever this one is.
_QUOTED = re.compile(r"(['\"])(?:[A-Za-z]:[\\/]|[\\/])[^'\"\n]*?([^'\"\\/\n]*)[\\/]*\1")


def without_places(text: str) -> str:
    """A text without the folders that ComfyUI and its user's home are in.

    Args:
        text: Of an event or an error.

    Returns:
        ``output/loras/cat.safetensors`` where it had the whole path; of a path in quotes elsewhere, the name.
    """
    for folder, name in _folders():
        if folder in text:
            text = re.sub(rf"{re.escape(folder)}(?![\w.-])", name, text)
    return _QUOTED.sub(r"\1\2\1", text)


def _folders() -> list[tuple[str, str]]:
    """Folders and what stands for them, the innermost first."""
    known = {str(Path.home()): "~"}
    try:
        import folder_paths
    except ImportError:  # a test, a script
        return list(known.items())
    known[str(folder_paths.base_path)] = "ComfyUI"
    for kind in ("models", "temp", "input", "output"):
        ask = getattr(folder_paths, f"get_{kind}_directory", None)
        folder = str(ask()) if ask else str(getattr(folder_paths, f"{kind}_dir", ""))
        for spelled in {folder, str(Path(folder).resolve())} if folder else ():
            known[spelled] = kind
    kept = [(folder, name) for folder, name in known.items() if len(folder) > 3]
    return sorted(kept, key=lambda item: -len(item[0]))
