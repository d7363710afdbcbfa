# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures with captions in .txt files beside them.

Everything that is wrong is found before any training starts, and is named in one error rather
than one at a time.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .images import EXTENSIONS, Checked, ImageError, check_image
from .item import Item

CAPTION_EXTENSIONS = (".txt",)

_UNREAD_PICTURES = frozenset(
    ".arw .avif .cr2 .cr3 .dng .exr .hdr .heic .heif .jfif .jp2 .jxl .nef .ppm .psd .qoi .raw"
    " .svg .tga .webp".split()
)
_NO_FILE = "is a link to nothing or no plain file: remove it"
_IGNORED = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


@dataclass
class _Listing:
    """What lies in a folder; paths are relative to its root."""

    images: list[Path] = field(default_factory=list)
    captions: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    outside: list[Path] = field(default_factory=list)


def read_folder(
    folder: str | Path, caption: str = "", recursive: bool = False
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """Read a folder of pictures and their captions, in natural order of their names.

    The caption of ``cat.png`` is ``cat.txt`` beside it, in UTF-8; ``caption`` stands in for those
    that have none or an empty one. Pictures that differ in their extension only share a caption.
    Every picture is decoded once, so that a bad one is known now. Hidden files are skipped.

    Args:
        folder: Where the pictures are.
        caption: For pictures without a caption file.
        recursive: Also read folders inside the folder.

    Returns:
        The items, and warnings for people.

    Raises:
        ValueError: No folder, no pictures, pictures without a caption, files that cannot be read
            or that lie outside of the folder behind a link. All of them are named.
    """
    root = _root(folder)
    listing = _scan(root, recursive)
    if listing.outside:
        raise ValueError(
            f"links in '{root.name}' lead out of the folder, which is not allowed: "
            f"{_some(listing.outside)}. Copy the files instead"
        )
    if not listing.images:
        raise ValueError(_nothing_found(root, listing, recursive))
    texts, problems = _read_captions(root, listing.captions)
    captions = [texts.get(_stem(image), "") or caption.strip() for image in listing.images]
    missing = [image for image, text in zip(listing.images, captions, strict=True) if not text]
    if missing and not problems:
        raise ValueError(
            f"{len(missing)} of {len(listing.images)} images in '{root.name}' have no caption: "
            f"{_some(missing)}. Put a .txt file with text and the same name beside each, "
            "or give one prompt for all"
        )
    checks, notes = _check_images(root, listing.images, problems)
    if problems:
        raise ValueError(_bad_files(root, problems))
    items = tuple(
        Item((text,), path=str(root / image), size=(check.width, check.height))
        for image, text, check in zip(listing.images, captions, checks, strict=True)
    )
    return items, (*notes, *_left_out(listing))


def folder_fingerprint(folder: str | Path, recursive: bool = False) -> str:
    """Return a SHA-256 that changes when pictures or captions come, go or change; opens none.

    It covers name, size and modification time, for a node's ``fingerprint_inputs``. A missing
    folder has a fingerprint too.

    Args:
        folder: Where the pictures are.
        recursive: Also look into folders inside the folder.

    Returns:
        Sixty-four hexadecimal digits.
    """
    sha = hashlib.sha256()
    root = Path(folder).resolve()
    listing = _scan(root, recursive) if root.is_dir() else _Listing()
    for path in (*listing.images, *listing.captions, *listing.outside):
        try:
            status = (root / path).stat()
            facts = (path.as_posix(), status.st_size, status.st_mtime_ns)
        except OSError:  # a broken link, or removed since
            facts = (path.as_posix(), -1, -1)
        sha.update(repr(facts).encode("utf-8", "surrogateescape"))
    return sha.hexdigest()


def natural_key(path: Path) -> tuple[tuple[tuple[object, ...], ...], tuple[str, ...]]:
    """Return a sort key that puts 2.png before 10.png, part by part, whatever the case."""
    folded = tuple(_natural(part.casefold()) for part in path.parts)
    return (folded, path.parts)  # the parts settle what differs in case or leading zeros only


def _natural(text: str) -> tuple[object, ...]:
    pieces = re.split(r"([0-9]+)", text)
    return tuple(int(piece) if n % 2 else piece for n, piece in enumerate(pieces))


def _root(folder: str | Path) -> Path:
    root = Path(folder).resolve()
    if not root.exists():
        raise ValueError(f"there is no folder '{folder}'")
    if not root.is_dir():
        raise ValueError(f"'{folder}' is a file: give the folder that it lies in")
    return root


def _scan(root: Path, recursive: bool) -> _Listing:
    listing = _Listing()
    pending = [root]
    while pending:
        for entry in pending.pop().iterdir():
            name = entry.relative_to(root)
            if entry.name.startswith(".") or entry.name.lower() in _IGNORED:
                continue
            if entry.is_dir():
                listing.folders.append(name)
                if not recursive:
                    continue
                # A link to a folder inside is not followed: its files are found where they are.
                real = entry.resolve()
                if not real.is_relative_to(root):
                    listing.outside.append(name)
                elif real == root / name:
                    pending.append(entry)
            else:
                _file(listing, root, name)
    for names in vars(listing).values():
        names.sort(key=natural_key)
    return listing


def _file(listing: _Listing, root: Path, name: Path) -> None:
    """Put a file on the list it belongs to."""
    extension = name.suffix.lower()
    kinds = {EXTENSIONS: listing.images, CAPTION_EXTENSIONS: listing.captions}
    found = next((names for endings, names in kinds.items() if extension in endings), None)
    if found is None:
        listing.others.append(name)
    elif (root / name).is_symlink() and not _stays(root / name, root):
        listing.outside.append(name)
    else:
        found.append(name)


def _stays(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # links in a circle
        return False


def _stem(path: Path) -> str:
    """Return what a picture and its caption share; the case of names differs between systems."""
    return path.with_suffix("").as_posix().casefold()


def _read_captions(root: Path, paths: Sequence[Path]) -> tuple[dict[str, str], list[str]]:
    texts: dict[str, str] = {}
    problems: list[str] = []
    for path in paths:
        if not (root / path).is_file():
            problems.append(f"{path.as_posix()}: {_NO_FILE}")
            continue
        try:
            text = (root / path).read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            where = f"byte 0x{byte:02x} at position {error.start}"
            problems.append(
                f"{path.as_posix()}: is not UTF-8 text ({where}): save it as UTF-8 in an editor"
            )
        except OSError as error:
            problems.append(f"{path.as_posix()}: cannot be read ({error.strerror})")
        else:
            texts[_stem(path)] = " ".join(text.split())
    return texts, problems


def _check_images(
    root: Path, images: Sequence[Path], problems: list[str]
) -> tuple[list[Checked], list[str]]:
    """Decode every picture once; reasons against the bad ones are added to the problems."""
    checks, notes = [], []
    for image in images:
        if not (root / image).is_file():
            problems.append(f"{image.as_posix()}: {_NO_FILE}")
            continue
        try:
            check = check_image(root / image)
        except ImageError as error:
            problems.append(f"{image.as_posix()}: {error.reason}")
            continue
        checks.append(check)
        if check.warning:
            notes.append(f"{image.as_posix()} {check.warning}")
    return checks, notes


def _bad_files(root: Path, problems: Sequence[str], limit: int = 10) -> str:
    count = "1 file" if len(problems) == 1 else f"{len(problems)} files"
    lines = [f"{count} in '{root.name}' cannot be used:", *problems[:limit]]
    if len(problems) > limit:
        lines.append(f"and {len(problems) - limit} more")
    return "\n  ".join(lines)


def _nothing_found(root: Path, listing: _Listing, recursive: bool) -> str:
    files = [*listing.captions, *listing.others]
    kinds = Counter(path.suffix.lower() or "without an extension" for path in files)
    found = [f"{count} {kind}" for kind, count in kinds.most_common(5)]
    if listing.folders and not recursive:
        found.append(f"{len(listing.folders)} folders (read only with 'recursive' on)")
    return (
        f"there are no images in '{root.name}': looked for {', '.join(EXTENSIONS)}; "
        f"found {', '.join(found) if found else 'nothing at all'}"
    )


def _left_out(listing: _Listing) -> list[str]:
    """Return warnings about captions without a picture and pictures that are not read."""
    stems = {_stem(image) for image in listing.images}
    orphans = [path for path in listing.captions if _stem(path) not in stems]
    unread = [path for path in listing.others if path.suffix.lower() in _UNREAD_PICTURES]
    warnings = []
    if orphans:
        warnings.append(f"captions without an image: {_some(orphans)}")
    if unread:
        warnings.append(f"not read, as their format is not supported: {_some(unread)}")
    return warnings


def _some(paths: Iterable[Path], limit: int = 5) -> str:
    names = [path.as_posix() for path in paths]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
