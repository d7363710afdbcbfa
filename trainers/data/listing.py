# SPDX-License-Identifier: Apache-2.0
"""What lies in a folder of pictures: names in natural order, and a fingerprint; no file is opened."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ...plain import plain
from .images import EXTENSIONS

CAPTION_EXTENSIONS = (".txt", ".caption")
METADATA = ("metadata.jsonl", "metadata.csv")
MASK_ENDING = "-masklabel"
NO_FILE = "is a link to nothing or no plain file: remove it"

_IGNORED = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


@dataclass
class Listing:
    """What lies in a folder; paths are relative to its root.

    Attributes:
        images: Pictures, without the masks.
        masks: Pictures called ``<name>-masklabel`` beside a picture of that name.
        captions: Text files.
        others: All other files.
        folders: Folders.
        outside: Links that lead out of the root.
    """

    images: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    captions: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    outside: list[Path] = field(default_factory=list)


def folder_fingerprint(folder: str | Path, recursive: bool = False) -> str:
    """Return a SHA-256 that changes when files of the dataset come, go or change; opens none.

    It covers names, sizes and modification times of pictures, masks, captions and metadata, for a
    node's ``fingerprint_inputs``. A missing folder has a fingerprint too.

    Args:
        folder: Where the pictures are.
        recursive: Also look into folders inside the folder.

    Returns:
        Sixty-four hexadecimal digits.
    """
    sha = hashlib.sha256()
    root = Path(folder).resolve()
    listing = scan(root, recursive) if root.is_dir() else Listing()
    # A folder without a picture is a class without one, where folders are classes.
    folders = [(path.as_posix(), -1, -1) for path in listing.folders if recursive]
    sha.update(repr(folders).encode("utf-8", "surrogateescape") if folders else b"")
    metadata = [path for path in listing.others if path.as_posix() in METADATA]
    for path in (
        *listing.images,
        *listing.captions,
        *listing.outside,
        *listing.masks,
        *metadata,
    ):
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


def scan(root: Path, recursive: bool) -> Listing:
    """List a folder; hidden files and links to folders inside are passed over.

    Args:
        root: The folder, resolved.
        recursive: Also list the folders inside.

    Returns:
        Paths relative to the root, each kind in natural order.
    """
    listing = Listing()
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
    _set_masks_apart(listing)
    return listing


def stays(path: Path, root: Path) -> bool:
    """Whether a path, with all links followed, lies inside the root."""
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # links in a circle
        return False


def stem(path: Path) -> str:
    """What a picture and its caption share; the case of names differs between systems."""
    return path.with_suffix("").as_posix().casefold()


def some(paths: Iterable[Path], limit: int = 5) -> str:
    """A few paths for a message, and how many more there are."""
    names = [path.as_posix() for path in paths]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return plain(", ".join(names[:limit]) + more)


def _set_masks_apart(listing: Listing) -> None:
    stems = {stem(image) for image in listing.images}
    ending = len(MASK_ENDING)
    listing.masks = [
        image
        for image in listing.images
        if stem(image).endswith(MASK_ENDING) and stem(image)[:-ending] in stems
    ]
    masks = set(listing.masks)
    listing.images = [image for image in listing.images if image not in masks]


def _file(listing: Listing, root: Path, name: Path) -> None:
    """Put a file on the list it belongs to."""
    extension = name.suffix.lower()
    kinds = {EXTENSIONS: listing.images, CAPTION_EXTENSIONS: listing.captions}
    found = next((names for endings, names in kinds.items() if extension in endings), None)
    if found is None:
        listing.others.append(name)
    elif (root / name).is_symlink() and not stays(root / name, root):
        listing.outside.append(name)
    else:
        found.append(name)
