# SPDX-License-Identifier: Apache-2.0
"""What the folders inside a folder of pictures mean: nothing, repeats as in sd-scripts, or classes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .item import MAX_REPEATS
from .listing import Listing, some

PLAIN, REPEATS, CLASSES, METADATA_FILE = "plain", "repeats", "classes", "metadata"
LAYOUTS = (PLAIN, REPEATS, CLASSES, METADATA_FILE)
_REPEATS = re.compile(r"([0-9]+)_(.*)")


@dataclass(frozen=True)
class Entry:
    """A picture that is to be read, and what is known of it before.

    Attributes:
        image: Its file, relative to the root.
        captions: Its captions, where they are known already.
        fallback: Its caption where there is no other.
        mask: The file of its mask, relative to the root.
        repeats: How often an epoch has it.
        weight: Factor of its loss.
        label: Number of its class.
    """

    image: Path
    captions: tuple[str, ...] = ()
    fallback: str = ""
    mask: Path | None = None
    repeats: int = 1
    weight: float = 1.0
    label: int | None = None


def class_names(listing: Listing) -> tuple[str, ...]:
    """The names of the folders in the root, sorted as strings, as torchvision's and `datasets`' ImageFolder do.

    Args:
        listing: What lies in the root and its folders.

    Returns:
        One name for each class, in the order of the labels.
    """
    return tuple(sorted(path.name for path in listing.folders if len(path.parts) == 1))


def by_repeats(
    root: Path, listing: Listing, recursive: bool
) -> tuple[list[Entry], list[str], list[str]]:
    """Take a folder called ``10_sks dog`` as ten repeats of pictures of "sks dog", as sd-scripts does.

    Args:
        root: The folder.
        listing: What lies in it and its folders.
        recursive: Also take pictures from folders inside those.

    Returns:
        The pictures, problems and warnings.

    Raises:
        ValueError: No folder has repeats in its name.
    """
    folders = [path for path in listing.folders if len(path.parts) == 1]
    numbers = {path.name: _REPEATS.fullmatch(path.name) for path in folders}
    repeats = {name: (int(found[1]), found[2].strip()) for name, found in numbers.items() if found}
    if not repeats:
        there = some(folders) or "no folders at all"
        raise ValueError(
            f"no folder in '{root.name}' is named after its repeats, such as '10_sks dog': found {there}. Rename them, "
            f"or choose the layout '{PLAIN}'"
        )
    problems = [
        f"{name}: {count} repeats, 1 to {MAX_REPEATS} are allowed: rename the folder"
        for name, (count, _) in repeats.items()
        if not 1 <= count <= MAX_REPEATS
    ]
    inside, warnings = _inside(listing, recursive, list(repeats), "not in a folder with repeats")
    entries = [
        Entry(image, fallback=repeats[name][1], repeats=repeats[name][0]) for image, name in inside
    ]
    empty = sorted(set(repeats) - {name for _, name in inside})
    if empty:
        warnings.append(f"folders without an image: {', '.join(empty)}")
    return ([] if problems else entries), problems, warnings


def by_classes(
    root: Path, listing: Listing, recursive: bool
) -> tuple[list[Entry], list[str], list[str]]:
    """Take each folder as a class, whose label is its place among the sorted names.

    Args:
        root: The folder.
        listing: What lies in it and its folders.
        recursive: Also take pictures from folders inside those.

    Returns:
        The pictures, problems (folders without a picture) and warnings.

    Raises:
        ValueError: There are no folders.
    """
    names = class_names(listing)
    if not names:
        raise ValueError(
            f"there are no folders in '{root.name}', so there are no classes: make a folder for each class, or choose "
            f"the layout '{PLAIN}'"
        )
    inside, warnings = _inside(listing, recursive, names, "not in the folder of a class")
    entries = [Entry(image, fallback=name, label=names.index(name)) for image, name in inside]
    filled = {name for _, name in inside}
    problems = [
        f"{name}: a class without an image: put images into the folder, or remove it"
        for name in names
        if name not in filled
    ]
    return entries, problems, warnings


def _inside(
    listing: Listing, recursive: bool, names: Sequence[str], why_not: str
) -> tuple[list[tuple[Path, str]], list[str]]:
    """Return the pictures in the named folders with the folder's name, and warnings about the others."""
    inside, left_out = [], []
    for image in listing.images:
        depth = len(image.parts)
        if depth > 1 and image.parts[0] in names and (depth == 2 or recursive):
            inside.append((image, image.parts[0]))
        else:
            left_out.append(image)
    return inside, [f"not read, as they are {why_not}: {some(left_out)}"] if left_out else []
