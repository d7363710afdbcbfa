# SPDX-License-Identifier: Apache-2.0
"""Where files may be read and written: names and folders that come from a workflow are untrusted.

Everything stays inside the host's output and input folders and its registered dataset folders.
"""

import contextlib
import difflib
import errno
import filecmp
import os
import re
import sys
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from ...plain import plain

RUN_ID = re.compile(r"[0-9a-f]{8,64}")
_FORBIDDEN = frozenset('<>:"/\\|?*')
_RESERVED = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|clock\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])"
)
_MAX_NAME_BYTES = 160
_MAX_PART_BYTES = 255  # of file systems
_REPLACE_TRIES = 10
# A quota and a limit on the size of files are full disks, too.
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def output_folder() -> Path:
    """The host's output folder."""
    import folder_paths

    return Path(folder_paths.get_output_directory())


def loras_folder() -> Path:
    """``output/loras``, made and registered, so that the stock LoraLoader lists what is in it."""
    import folder_paths

    folder = output_folder() / "loras"
    _make(folder)
    known = [os.path.realpath(path) for path in folder_paths.get_folder_paths("loras")]
    if os.path.realpath(folder) not in known:
        folder_paths.add_model_folder_path("loras", str(folder))
    return folder


def refresh_loras() -> None:
    """Make the host read its list of LoRA files again."""
    import folder_paths

    getattr(folder_paths, "filename_list_cache", {}).pop("loras", None)


def is_run_id(run: object) -> bool:
    """Whether ``run`` is 8 to 64 lower-case hexadecimal digits."""
    return isinstance(run, str) and RUN_ID.fullmatch(run) is not None


def run_folder(run: str, *, create: bool = True) -> Path:
    """``output/graft/<run>``, where everything of one run is kept.

    Args:
        run: Id of the run, 8 to 64 lower-case hexadecimal digits.
        create: Make the folder when it is not there.

    Raises:
        ValueError: ``run`` is no run id, or the folder leads out of the output folder.
    """
    if not is_run_id(run):
        raise ValueError(f"{str(run)[:100]!r} is not a run id: 8 to 64 hexadecimal digits are.")
    folder = inside(output_folder(), f"graft/{run}")
    if create:
        _make(folder)
    return folder


def cache_folder() -> Path:
    """``output/graft/cache``: what was encoded once, for the next run. It may be deleted at any time.

    Under output, as that is where this pack may write much, where ``--output-directory`` moves it to a disk with room,
    and what no start of ComfyUI empties, as it empties temp.
    """
    return inside(output_folder(), "graft/cache")


def class_folder(name: str) -> Path:
    """``output/graft/class/<name>``, made: class images that the model itself drew.

    Raises:
        ValueError: ``name`` cannot be a folder's, or leads out of the output folder.
    """
    safe_name(name, "name of the class images")
    folder = inside(output_folder(), f"graft/class/{name}")
    _make(folder)
    return folder


def relative_to_output(path: Path) -> str:
    """``path`` below the output folder with forward slashes, as image references want it.

    Raises:
        ValueError: ``path`` is not in the output folder.
    """
    base = Path(os.path.abspath(output_folder()))  # noqa: PTH100 - "output/loras" may be a link
    there = Path(os.path.abspath(path))  # noqa: PTH100
    if there.is_relative_to(base):
        return there.relative_to(base).as_posix()
    return inside(base, path).relative_to(base.resolve()).as_posix()


def safe_name(name: str, what: str = "name") -> str:
    """``name`` in Unicode's NFC form when it can be a file's stem on every system.

    Args:
        name: What the user typed, without an extension.
        what: What the name is for, as the message says it.

    Raises:
        ValueError: The name is empty, too long, reserved, or has separators, dots or invisible
            characters where they do harm.
    """
    normal = unicodedata.normalize("NFC", name) if isinstance(name, str) else ""
    reason = _harm(normal)
    if reason is not None:
        raise ValueError(f"The {what} {str(name)[:100]!r} cannot be used: {reason}.")
    return normal


def lora_name(name: str) -> str:
    """``name`` when a LoRA can be called so, with room for ``_step00000000`` after it.

    Raises:
        ValueError: As ``safe_name``.
    """
    safe_name(f"{name}_step00000000" if name else name, "name of the LoRA")
    return safe_name(name, "name of the LoRA")


def _harm(name: str) -> str | None:
    # Compatibility forms (a full-width slash) turn into the real thing on some systems.
    folded = unicodedata.normalize("NFKC", name)
    forbidden = sorted(_FORBIDDEN & set(name + folded))
    if not name.strip():
        return "it is empty"
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs") for character in name):
        return "it has control or invisible characters"
    if forbidden:
        return f"it has {' '.join(forbidden)}, which file names and folders do not allow"
    if name != name.strip() or folded.startswith(".") or folded.endswith((".", " ")):
        return "it begins with a dot, or begins or ends with a space, or ends with a dot"
    if _RESERVED.fullmatch(folded.split(".")[0].strip().casefold()):
        return "Windows reserves it for a device"
    if len(name.encode("utf-8")) > _MAX_NAME_BYTES:
        return f"it is longer than {_MAX_NAME_BYTES} bytes"
    return None


def inside(base: Path, path: str | Path) -> Path:
    """``path`` (relative to ``base``, or absolute) with links resolved, when it is in ``base``.

    Raises:
        ValueError: The path leads out of ``base``, through ``..``, a link or a drive.
    """
    root = os.path.realpath(base)
    try:
        if any(len(part.encode()) > _MAX_PART_BYTES for part in re.split(r"[\\/]", str(path))):
            raise ValueError(f"{str(path)[:100]!r} ... has a name longer than any file's.")
    except UnicodeEncodeError as error:
        raise ValueError(f"{str(path)[:100]!r} has half a character in it.") from error
    try:
        real = os.path.realpath(os.path.join(root, path))  # noqa: PTH118 - Path drops no "..", realpath does
        common = os.path.commonpath([root, real])
        is_inside = os.path.normcase(common) == os.path.normcase(root)
    except (ValueError, OSError):  # NUL bytes, other drives, loops of links
        is_inside = False
    if not is_inside:
        raise ValueError(f"{str(path)[:200]!r} leads out of the folder '{Path(base).name}'.")
    return Path(real)


def input_folder(name: str) -> Path:
    """The folder ``name`` under ``input/`` or under a registered datasets folder.

    Args:
        name: Relative path; slashes of both kinds separate its parts.

    Raises:
        ValueError: The name is absolute, has ``..``, leads out through a link, or is no folder.
    """
    bases = _input_bases()
    where = "'input'" if len(bases) == 1 else "'input' or a datasets folder"
    wanted = _relative(name, where)
    escaped: ValueError | None = None
    for base in bases:
        try:
            folder = inside(base, wanted)
        except ValueError as error:
            if os.path.lexists(base / wanted):
                escaped = error
            continue
        if folder.is_dir():
            return folder
        if folder.exists():
            raise ValueError(
                f"'{plain(wanted, 100)}' is a file. Give the name of the folder that holds it."
            )
    if escaped is not None:
        raise escaped
    wanted = plain(wanted, 100)
    near = difflib.get_close_matches(wanted, _subfolders(bases), n=3, cutoff=0.4)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    raise ValueError(f"There is no folder '{wanted}' in {where}.{hint}")


def _relative(name: str, where: str) -> str:
    text = name.strip() if isinstance(name, str) else ""
    parts = text.replace("\\", "/").rstrip("/").split("/")
    if not parts[0] and len(parts) == 1:
        raise ValueError(f"The folder name is empty. Give the name of a folder in {where}.")
    has_control = any(unicodedata.category(character) == "Cc" for character in text)
    if not parts[0] or ":" in text or has_control or ".." in parts or parts[0] == "~":
        raise ValueError(
            f"The folder {text[:100]!r} is not allowed: give a path relative to {where}, without '..'."
        )
    kept = [part for part in parts if part not in ("", ".")]
    if not kept:
        raise ValueError(f"Give the name of a folder in {where}, not {name!r}.")
    return "/".join(kept)


def _input_bases() -> list[Path]:
    import folder_paths

    bases = [Path(folder_paths.get_input_directory())]
    if "datasets" in folder_paths.folder_names_and_paths:
        bases += [Path(path) for path in folder_paths.get_folder_paths("datasets")]
    return bases


def _subfolders(bases: list[Path]) -> list[str]:
    found = []
    for base in bases:
        with contextlib.suppress(OSError):
            found += [entry.name for entry in base.iterdir() if entry.is_dir()]
    return sorted(set(found))


def check_writable(folder: Path) -> Path:
    """Make ``folder`` when it is not there and try to write a file in it.

    Raises:
        PermissionError: It cannot be written.
        ValueError: Something else is in its place, or the disk is full.
    """
    _make(folder)
    probe = folder / f".graft-{uuid.uuid4().hex}.tmp"
    try:
        probe.write_bytes(b"graft")
    except OSError as error:
        raise _clear(error, folder) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _clear(error, folder) from error


def _clear(error: OSError, folder: Path) -> Exception:
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return ValueError(f"'{folder}' cannot be a folder: a file is in its place. Move it away.")
    if error.errno in _FULL:
        return ValueError(f"No space is left on the disk of '{folder}'. Free some, then run again.")
    return PermissionError(
        f"'{folder}' cannot be written ({error.strerror or error}). Change its permissions, or "
        "start ComfyUI with another --output-directory."
    )


def atomic_write(path: Path, writer: Callable[[Path], None]) -> Path:
    """Let ``writer`` write a temporary file beside ``path``, then put it in place in one step.

    Args:
        path: The file that is to be; one that is there is replaced.
        writer: Writes the file at the path that it is given.

    Returns:
        ``path``. When the writer fails, nothing is left behind and an old file is untouched.
    """
    with _temporary(path.parent, writer) as made:
        _replace(made, path)
    return path


def write_once(folder: Path, name: str, suffix: str, writer: Callable[[Path], None]) -> Path:
    """Write a file under the next free name, unless a file of this name has the same bytes already.

    Args:
        folder: Where the file goes.
        name: Stem of the file, checked by ``safe_name``.
        suffix: Extension with its dot.
        writer: Writes the file at the path that it is given.

    Returns:
        The new file, or the one that was there with equal bytes.
    """
    with _temporary(folder, writer) as made:
        names = _candidates(folder, name, suffix)
        path = next(path for path in names if not os.path.lexists(path) or _equal(made, path))
        if not os.path.lexists(path):
            _replace(made, path)
    return path


def _equal(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def _candidates(folder: Path, name: str, suffix: str) -> Iterator[Path]:
    stem = safe_name(name)
    yield folder / f"{stem}{suffix}"
    counter = 2
    while True:
        yield folder / f"{stem}_{counter:05}{suffix}"
        counter += 1


@contextlib.contextmanager
def _temporary(folder: Path, writer: Callable[[Path], None]) -> Iterator[Path]:
    # No model extension: ComfyUI must not list a file that is half there.
    temporary = folder / f".graft-{uuid.uuid4().hex}.tmp"
    try:
        writer(temporary)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        yield temporary
    except OSError as error:
        raise _unwritten(error, folder) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _unwritten(error: OSError, folder: Path) -> OSError:
    """The same kind of error, saying which folder and what to do."""
    where = f"'{folder.parent.name}/{folder.name}'"
    if error.errno in _FULL:
        text = f"No space left on the disk of {where}; make room there, then run again"
    else:
        text = f"{where} cannot be written: {error.strerror or error}"
    return OSError(error.errno or errno.EIO, text)


def _replace(source: Path, target: Path) -> None:
    for attempt in range(_REPLACE_TRIES):
        try:
            os.replace(source, target)  # noqa: PTH105 - one call for both kinds of system
            break
        except PermissionError:
            # Windows refuses while a reader or a virus scanner has the old file open.
            if sys.platform != "win32" or attempt == _REPLACE_TRIES - 1:
                raise
            time.sleep(0.05 * (attempt + 1))
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fingerprint(file: Path) -> str:
    """What changes with a file: its path, size and time."""
    stat = file.stat()
    return f"{file} {stat.st_size} {stat.st_mtime_ns}"
