# SPDX-License-Identifier: Apache-2.0
"""What is odd about single pictures of a dataset, each kind by name: what a report counts and a panel marks."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .buckets import covering
from .dataset import Dataset
from .images import vanished
from .item import Item
from .order import overcounted
from .triggers import trigger_pattern

NO_CAPTION, NO_TRIGGER, SAME_CAPTION = "no caption", "no trigger", "same caption"
SMALL, SCALED_UP, CUT, SHAPE = "small", "scaled up", "cut off", "odd shape"
DUPLICATE, ALONE, SILENT = "duplicate", "alone in bucket", "weight 0"
KINDS = (
    NO_CAPTION, NO_TRIGGER, DUPLICATE, SMALL, SCALED_UP, CUT, SHAPE, SAME_CAPTION, ALONE, SILENT,
)  # fmt: skip
"""All kinds, in the order in which they are told."""
MOST_CUT, LONGEST = 0.15, 3.0


def of_size(dataset: Dataset, index: int) -> dict[str, str]:
    """What is odd about the size of a picture, as it is trained at; no picture is decoded.

    Small is a picture of less than half the pixels that are trained at, cut off one that loses more than 15 % of its
    area, and odd a shape of more than 3 to 1.

    Args:
        dataset: The pictures.
        index: Number of one.

    Returns:
        A text for people by kind; none as a rule.

    Raises:
        ImageError: The file cannot be read.
        ValueError: The framing has no size for it.
    """
    part, i = dataset.part(index)
    width, height = part.items[i].measure()
    (wide, high), found = part.framing.size(width, height, part.resolution), dict[str, str]()
    if 2 * width * height < part.resolution**2:
        found[SMALL] = (
            f"{width} x {height} px, less than half of what resolution {part.resolution} asks for"
        )
    scaled = covering(width, height, (wide, high))
    if scaled[0] > width or scaled[1] > height:
        found[SCALED_UP] = f"scaled up from {width} x {height} px to fill {wide} x {high} px"
    lost = 1 - wide * high / (scaled[0] * scaled[1])
    if lost > MOST_CUT:
        found[CUT] = f"{100 * lost:.0f} % of it is cut off, to fit {wide} x {high} px"
    longer = max(width, height) / min(width, height)
    if longer > LONGEST:
        found[SHAPE] = (
            f"{longer:.1f} times as {'wide as high' if width > height else 'high as wide'}"
        )
    return found


def of_texts(dataset: Dataset, index: int, texts: tuple[str, ...]) -> dict[str, str]:
    """What is missing in the texts of a picture.

    Args:
        dataset: The pictures.
        index: Number of one.
        texts: As ``dataset.texts(index)`` has them.

    Returns:
        A text for people by kind; none as a rule.
    """
    part, _ = dataset.part(index)
    if not any(texts):
        return {NO_CAPTION: "it has no caption"}
    if part.trigger and not has_trigger(part.trigger, texts):
        return {NO_TRIGGER: f'its caption does not have the trigger "{part.trigger}"'}
    return {}


def has_trigger(trigger: str, texts: tuple[str, ...]) -> bool:
    """Whether one of the texts calls the concept by its trigger."""
    return any(map(trigger_pattern([trigger]).search, texts))


def shared_captions(dataset: Dataset) -> dict[int, str]:
    """Pictures whose caption other ones have, too, where not all captions are alike.

    Args:
        dataset: The pictures.

    Returns:
        A text for people by number; none where one caption is meant for all.
    """
    counts = Counter(item.captions for item in dataset.items if any(item.captions))
    if len(counts) < 2:
        return {}
    return {
        index: f"{counts[item.captions] - 1} more with the same caption"
        for index, item in enumerate(dataset.items)
        if counts[item.captions] > 1
    }


def of_order(dataset: Dataset, batch: int = 0) -> Iterator[tuple[int, str, str]]:
    """Pictures that count more often than others, or not at all.

    Args:
        dataset: The pictures.
        batch: Pictures in one optimizer step; 0 where that is not known yet.

    Yields:
        Number, kind and a text for people.

    Raises:
        ImageError: A file cannot be read.
        ValueError: The framing has no size for a picture.
    """
    sizes = [dataset.size(i) for i in range(len(dataset))]
    for index in overcounted(sizes, batch or 2, dataset.repeats):
        text = "alone in its bucket: a step of several pictures repeats it"
        yield index, ALONE, text
    for index, item in enumerate(dataset.items):
        if item.weight == 0:
            yield index, SILENT, "its weight is 0, so nothing is learned from it"


def duplicates(
    dataset: Dataset, digest: Callable[[Item], str] = Item.picture_digest
) -> list[list[int]]:
    """Groups of pictures with equal contents; only files of equal length are read.

    Args:
        dataset: Where to look.
        digest: Hashes the contents of a picture; another one may remember it.

    Returns:
        Their numbers, a list for each group of two or more.

    Raises:
        ImageError: A file is gone.
        OSError: A file cannot be read.
    """
    by_bytes = defaultdict(list)
    for index, item in enumerate(dataset.items):
        pixels = item.pixels
        key = tuple(pixels.shape) if pixels is not None else _bytes(str(item.path))
        by_bytes[key].append(index)
    groups = defaultdict(list)
    for indices in by_bytes.values():
        if len(indices) > 1:
            for index in indices:
                groups[digest(dataset.items[index])].append(index)
    return [group for group in groups.values() if len(group) > 1]


def said_of_duplicates(groups: list[list[int]], names: Mapping[int, str]) -> dict[int, str]:
    """What is said of pictures that are there several times.

    Args:
        groups: As `duplicates` gives them.
        names: What pictures are called, by number.

    Returns:
        A text for people by number, with the name of another one.
    """
    return {
        index: f"the same picture as {names[group[1] if index == group[0] else group[0]]}"
        for group in groups
        for index in group
    }


def _bytes(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except FileNotFoundError as error:
        raise vanished(path) from error
