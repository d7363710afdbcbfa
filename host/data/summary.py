# SPDX-License-Identifier: Apache-2.0
"""What a look says of a dataset and of each picture, as JSON; every list and every text has a limit."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...plain import plain, plain_lines
from ...trainers.data import Dataset
from ...trainers.data import findings as find

MOST_LISTED, MOST_TEXTS = 100, 20
MOST_CHARACTERS, MOST_CAPTION = 2000, 240


@dataclass(frozen=True)
class Finding:
    """Something odd about a picture.

    Attributes:
        kind: Which kind of thing.
        text: For people.
        is_error: Whether the node refuses the dataset for it.
    """

    kind: str
    text: str
    is_error: bool = False

    def said(self) -> dict[str, Any]:
        """As JSON."""
        text = plain(self.text, MOST_CHARACTERS)
        return {"kind": self.kind, "text": text, "is_error": self.is_error}


@dataclass
class Summary:
    """Counts of a dataset.

    Attributes:
        refused: Files that cannot be used.
        odd: Pictures that something is odd about, with those.
        is_thorough: Whether all pictures were decoded, and compared with each other.
        errors: What the node says instead of making a dataset.
        counts: What `summary_of` found.
    """

    refused: int = 0
    odd: int = 0
    is_thorough: bool = True
    errors: list[str] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)

    def refuse(self, text: str) -> None:
        """Add what the node says."""
        self.errors.append(plain_lines(text)[:MOST_CHARACTERS])

    def said(self) -> dict[str, Any]:
        """As JSON."""
        own = {"refused": self.refused, "odd": self.odd or self.refused, "errors": self.errors}
        return {"pictures": 0, "is_thorough": self.is_thorough} | self.counts | own


def summary_of(
    dataset: Dataset,
    begun: Summary,
    sizes: Mapping[tuple[int, int], int],
    kinds: Mapping[str, int],
    notes: Sequence[str],
) -> Summary:
    """Count a dataset.

    Args:
        dataset: What.
        begun: What is known already.
        sizes: Pictures by bucket.
        kinds: Pictures by what is odd about them.
        notes: What a user should know.

    Returns:
        All counts.
    """
    buckets = sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0]))
    labels = Counter(item.label for item in dataset.items if item.label is not None)
    repeats = sorted(Counter(dataset.repeats).items())
    captions = {text for item in dataset.items for text in item.captions if text}
    warnings = [plain(text, MOST_CHARACTERS) for text in (*dataset.warnings, *notes)]
    counts = {
        "pictures": len(dataset),
        "source": plain(dataset.source, 200),
        "resolution": dataset.resolution,
        "epoch": sum(dataset.repeats),
        "captions": len(captions),
        "without_caption": kinds.get(find.NO_CAPTION, 0),
        "triggers": [plain(one, 200) for one in dataset.triggers[:MOST_LISTED]],
        "masks": sum(item.has_mask for item in dataset.items),
        "bucket_count": len(buckets),
        "buckets": [
            {"width": w, "height": h, "pictures": n} for (w, h), n in buckets[:MOST_LISTED]
        ],
        "repeats": [{"times": t, "pictures": n} for t, n in repeats[:MOST_LISTED]],
        "class_count": len(labels),
        "classes": [
            {"name": _class(dataset, label), "pictures": n}
            for label, n in sorted(labels.items())[:MOST_LISTED]
        ],
        "parts": [_part(part) for part in dataset.parts[:MOST_LISTED]],
        "kinds": [{"kind": kind, "pictures": kinds[kind]} for kind in ordered(kinds)],
        "warnings": warnings[:MOST_LISTED],
    }
    return Summary(begun.refused, errors=begun.errors, counts=counts)


def row_of(dataset: Dataset, index: int, name: str) -> dict[str, Any]:
    """What is known of one picture, without what is odd.

    Args:
        dataset: The pictures.
        index: Number of one.
        name: What it is called.

    Returns:
        JSON.
    """
    part, i = dataset.part(index)
    item = part.items[i]
    texts, more = texts_of(dataset, index)
    width, height = item.measure()
    return {
        "row": index,
        "name": plain(name, 400),
        "width": width,
        "height": height,
        "bucket": list(dataset.size(index)),
        "repeats": item.repeats,
        "weight": item.weight,
        "label": None if item.label is None else _class(dataset, item.label),
        "mask": item.has_mask,
        "caption": plain(next(filter(None, texts), item.caption), MOST_CAPTION),
        "texts": len(texts) + more,
    }


def ordered(kinds: Iterable[str]) -> list[str]:
    """Kinds of findings, with what stops a run first, then in the order in which they are told."""
    order = {kind: place for place, kind in enumerate(find.KINDS)}
    return sorted(kinds, key=lambda kind: order.get(kind, -1))


def texts_of(dataset: Dataset, index: int) -> tuple[list[str], int]:
    """The texts that a picture is trained with, and how many more there are.

    Args:
        dataset: The pictures.
        index: Number of one.

    Returns:
        The first texts in full, and a number; none where a caption cannot be read.
    """
    try:
        texts = dataset.texts(index)
    except ValueError:
        return [], 0
    return [plain(text) for text in texts[:MOST_TEXTS]], max(0, len(texts) - MOST_TEXTS)


def _class(dataset: Dataset, label: int) -> str:
    name = dataset.labels[label] if label < len(dataset.labels) else ""
    return plain(f"{label} {name}".strip(), 200)


def _part(part: Dataset) -> dict[str, Any]:
    repeats, weights = {item.repeats for item in part.items}, {item.weight for item in part.items}
    return {
        "source": plain(part.source, 200),
        "pictures": len(part),
        "resolution": part.resolution,
        "repeats": sorted(repeats)[:MOST_TEXTS],
        "weights": sorted(weights)[:MOST_TEXTS],
    }
