# SPDX-License-Identifier: Apache-2.0
"""What a dataset holds, as text for people: buckets, captions, duplicates, warnings."""

from collections import Counter

from .dataset import Dataset
from .findings import CUT, MOST_CUT, SCALED_UP, SMALL, duplicates, has_trigger, of_size
from .names import NAMED, picture_names, some
from .notes import notes


def describe(dataset: Dataset) -> str:
    """Return a short report for people: buckets, captions, duplicates, warnings.

    Args:
        dataset: What to report on; of files only headers and equally long ones are read.

    Returns:
        Several lines of text.

    Raises:
        ImageError: A file cannot be read.
        ValueError: A caption cannot be read, or a bucket cannot be found.
    """
    names = picture_names(dataset)
    lines = [_headline(dataset), *_part_lines(dataset), "buckets:"]
    buckets = Counter(dataset.size(i) for i in range(len(dataset)))
    for (width, height), count in sorted(buckets.items(), key=lambda pair: (-pair[1], pair[0])):
        lines.append(f"  {width:>5} x {height:<5} {_count(count, 'image')}")
    lines += _count_lines(dataset)
    lines += _caption_lines(dataset, names)
    lines += _size_lines(dataset, names)
    for group in duplicates(dataset):
        lines.append("same picture twice: " + " = ".join(names[i] for i in group))
    lines += [f"warning: {text}" for text in (*dataset.warnings, *notes(dataset))]
    if dataset.classes is not None:
        lines += [f"class images, weight {dataset.class_weight:g}:"]
        lines += [f"  {line}" for line in describe(dataset.classes).splitlines()]
    return "\n".join(lines)


def check_texts(dataset: Dataset) -> None:
    """Read every caption, so that a bad one is known before anything is encoded.

    Args:
        dataset: Whose captions.

    Raises:
        ValueError: Wildcards that cannot be read; names their pictures.
    """
    problems = []
    for index, name in enumerate(picture_names(dataset)):
        try:
            dataset.texts(index)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        more = f"\n  and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        count = _count(len(problems), "caption")
        raise ValueError(f"{count} cannot be used:\n  " + "\n  ".join(problems[:NAMED]) + more)


def list_texts(dataset: Dataset, count: int = 8) -> str:
    """List the texts of the first pictures, for people.

    Args:
        dataset: Whose texts.
        count: How many pictures.

    Returns:
        The name of each picture, and below it all texts that a step may draw.

    Raises:
        ValueError: A wildcard cannot be read.
    """
    lines = []
    for index, name in enumerate(picture_names(dataset)[:count]):
        lines += [f"{name}:", *(f"  {text or '(empty)'}" for text in dataset.texts(index))]
    return "\n".join(lines)


def _headline(dataset: Dataset) -> str:
    source = f' from "{dataset.source}"' if dataset.source else ""
    if dataset.parts:
        return f"{_count(len(dataset), 'image')}{source}, {len(dataset.parts)} datasets joined"
    crops = f", {dataset.crops} crops of each" if dataset.crops > 1 else ""
    mirrored = ", also mirrored" if dataset.framing.flip else ""
    images = _count(len(dataset), "image")
    return f"{images}{source}, resolution {dataset.resolution}{crops}{mirrored}"


def _part_lines(dataset: Dataset) -> list[str]:
    return [f"  {_headline(part)}{_shares(part)}" for part in dataset.parts]


def _shares(part: Dataset) -> str:
    """Return what a part has in an epoch, where its pictures are alike in that."""
    repeats, weights = {i.repeats for i in part.items}, {i.weight for i in part.items}
    said = f", repeats {repeats.pop()}" if len(repeats) == 1 else ""
    return said + (f", weight {weights.pop():g}" if len(weights) == 1 else "")


def _count_lines(dataset: Dataset) -> list[str]:
    """Return repeats, classes and masks, where there are any."""
    lines = []
    if set(dataset.repeats) != {1}:
        counts = ", ".join(
            f"{_count(count, 'image')} x {repeats}"
            for repeats, count in sorted(Counter(dataset.repeats).items())
        )
        lines.append(f"repeats: {counts}; an epoch has {sum(dataset.repeats)}")
    labels = Counter(item.label for item in dataset.items if item.label is not None)
    if labels:
        known = dict(enumerate(dataset.labels))
        counts = ", ".join(
            f"{label} {known.get(label, '')}".strip() + f" ({_count(count, 'image')})"
            for label, count in sorted(labels.items())
        )
        lines.append(f"classes: {counts}")
    masks = sum(item.has_mask for item in dataset.items)
    if masks:
        lines.append(f"masks: {masks} of {len(dataset)}")
    return lines


def _caption_lines(dataset: Dataset, names: list[str]) -> list[str]:
    texts = [dataset.texts(i) for i in range(len(dataset))]
    captions = {text for item in dataset.items for text in item.captions}
    missing = [name for name, own in zip(names, texts, strict=True) if not any(own)]
    given = f"{len(texts) - len(missing)} of {len(texts)}"
    lines = [f"captions: {given}, {len(captions - {''})} distinct"]
    if missing:
        lines.append(f"without a caption: {some(missing)}")
    distinct = {text for own in texts for text in own}
    if distinct != captions:
        least, most = min(map(len, texts)), max(map(len, texts))
        each = str(most) if least == most else f"{least} to {most}"
        lines.append(f"texts: {len(distinct)} distinct, {each} for an image")
    start = 0
    for part in dataset.parts or (dataset,):
        own = texts[start : start + len(part)]
        start += len(part)
        if part.trigger:
            count = sum(has_trigger(part.trigger, one) for one in own)
            lines.append(f'trigger "{part.trigger}": in {count} of {len(part)} captions')
    return lines


def _size_lines(dataset: Dataset, names: list[str]) -> list[str]:
    """Name pictures of less than half the pixels that are trained at, enlarged ones, and such as lose much."""
    said = {
        SMALL: "too small for the resolution",
        SCALED_UP: "scaled up to fill their buckets",
        CUT: f"cut off by more than {100 * MOST_CUT:.0f} % to fit their buckets",
    }
    named: dict[str, list[str]] = {kind: [] for kind in said}
    for index, name in enumerate(names):
        width, height = dataset.items[index].measure()
        for kind in named.keys() & of_size(dataset, index).keys():
            named[kind].append(f"{name} ({width} x {height})")
    return [f"{said[kind]}: {some(found)}" for kind, found in named.items() if found]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
