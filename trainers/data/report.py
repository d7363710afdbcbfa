# SPDX-License-Identifier: Apache-2.0
"""What a dataset holds, as text for people: buckets, captions, duplicates, warnings."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from .dataset import Dataset

_NAMED = 5


def describe(dataset: Dataset) -> str:
    """Return a short report for people: buckets, captions, duplicates, warnings.

    Args:
        dataset: What to report on; of files only headers and equally long ones are read.

    Returns:
        Several lines of text.

    Raises:
        ImageError: A file cannot be read.
    """
    names = [item.name or f"image {n}" for n, item in enumerate(dataset.items, 1)]
    source = f' from "{dataset.source}"' if dataset.source else ""
    images = _count(len(dataset), "image")
    crops = f", {dataset.crops} crops of each" if dataset.crops > 1 else ""
    lines = [f"{images}{source}, resolution {dataset.resolution}{crops}", "buckets:"]
    buckets = Counter(dataset.size(i) for i in range(len(dataset)))
    for (width, height), count in sorted(buckets.items(), key=lambda pair: (-pair[1], pair[0])):
        lines.append(f"  {width:>5} x {height:<5} {_count(count, 'image')}")
    lines += _caption_lines(dataset, names)
    for group in duplicates(dataset):
        lines.append("same picture twice: " + " = ".join(names[i] for i in group))
    lines += [f"warning: {text}" for text in dataset.warnings]
    return "\n".join(lines)


def duplicates(dataset: Dataset) -> list[list[int]]:
    """Groups of pictures with equal contents; only files of equal length are read.

    Args:
        dataset: Where to look.

    Returns:
        Their numbers, a list for each group of two or more.

    Raises:
        OSError: A file cannot be read.
    """
    by_bytes = defaultdict(list)
    for index, item in enumerate(dataset.items):
        pixels = item.pixels
        key = tuple(pixels.shape) if pixels is not None else Path(str(item.path)).stat().st_size
        by_bytes[key].append(index)
    groups = defaultdict(list)
    for indices in by_bytes.values():
        if len(indices) > 1:
            for index in indices:
                groups[dataset.items[index].picture_digest()].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _caption_lines(dataset: Dataset, names: list[str]) -> list[str]:
    captions = [item.caption for item in dataset.items]
    missing = [name for name, caption in zip(names, captions, strict=True) if not caption]
    given = f"{len(captions) - len(missing)} of {len(captions)}"
    lines = [f"captions: {given}, {len(set(captions) - {''})} distinct"]
    if missing:
        lines.append(f"without a caption: {_some(missing)}")
    if dataset.trigger:
        with_it = sum(dataset.trigger in caption for caption in captions)
        lines.append(f'trigger "{dataset.trigger}": in {with_it} of {len(captions)} captions')
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
