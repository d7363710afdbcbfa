# SPDX-License-Identifier: Apache-2.0
"""Datasets with other captions, other framing, or joined by what texts say."""

from collections.abc import Sequence
from dataclasses import replace

from .captions import Captioning
from .dataset import Dataset
from .framing import Framing
from .join import AS_GIVEN, join


def with_captioning(dataset: Dataset, captioning: Captioning) -> Dataset:
    """The same pictures, whose captions become texts in another way."""
    return dataset.map(lambda part: replace(part, captioning=captioning))


def with_framing(dataset: Dataset, framing: Framing) -> Dataset:
    """The same pictures in other buckets and crops; what counts outside of masks stays."""

    def change(part: Dataset) -> Dataset:
        return replace(part, framing=replace(framing, outside=part.framing.outside))

    return dataset.map(change)


def joined(
    datasets: Sequence[Dataset], repeats: str = "1", weights: str = "1", balance: str = AS_GIVEN
) -> Dataset:
    """As `join`, with numbers as people type them.

    Args:
        datasets: What to join.
        repeats: Whole numbers with commas between them.
        weights: Numbers with commas between them.
        balance: See `join`.

    Returns:
        The joined dataset.

    Raises:
        ValueError: A text is no such list, or as `join`.
    """
    times = [int(value) for value in numbers("repeats", repeats, is_whole=True)]
    return join(datasets, times, numbers("weights", weights), balance)


def numbers(name: str, given: str, is_whole: bool = False) -> list[float]:
    """The numbers of a text with commas between them.

    Args:
        name: What they are, as the message says it.
        given: The text.
        is_whole: Whether they are whole numbers from 1.

    Returns:
        One or more of 0 and above.

    Raises:
        ValueError: Something else stands there, or a number is out of range; names the widget.
    """
    kind: type = int if is_whole else float
    least = 1 if is_whole else 0
    try:
        values = [kind(part) for part in given.split(",")]
    except ValueError:
        values = []
    if not values or not all(least <= value < float("inf") for value in values):
        what = "whole numbers of 1 or more" if is_whole else "numbers of 0 or more"
        raise ValueError(
            f"{name} are '{given}'; give {what} with commas between them, such as 1, 2"
        )
    return values
