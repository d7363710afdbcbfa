# SPDX-License-Identifier: Apache-2.0
"""What pictures are called in messages."""

from collections.abc import Iterable

from .dataset import Dataset

NAMED = 5


def picture_names(dataset: Dataset) -> list[str]:
    """What each picture is called: its file, or its number.

    Args:
        dataset: Whose pictures.

    Returns:
        One name for each.
    """
    return [item.name or f"image {n}" for n, item in enumerate(dataset.items, 1)]


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
