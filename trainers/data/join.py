# SPDX-License-Identifier: Apache-2.0
"""Several datasets as one, each with its own resolution, captions, framing, repeats and weight."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from .dataset import Dataset
from .item import Item

AS_GIVEN, REPEATS, WEIGHTS = "as given", "repeats", "weights"
BALANCES = (AS_GIVEN, REPEATS, WEIGHTS)


def join(
    datasets: Sequence[Dataset],
    repeats: Sequence[int] = (1,),
    weights: Sequence[float] = (1.0,),
    balance: str = AS_GIVEN,
) -> Dataset:
    """Join datasets; joined ones are taken apart first.

    Args:
        datasets: What to join.
        repeats: How often an epoch has the pictures of each, times their own repeats; one number for
            all, or one for each.
        weights: Factors of the loss of each, times their pictures' own; one number for all, or one
            for each.
        balance: "as given"; "repeats": the smaller ones are repeated until they have about as many
            pictures as the largest; "weights": each dataset's pictures weigh as much as another's
            together, and one on average. Repeats and weights are applied to the balanced ones.

    Returns:
        The joined dataset; of one dataset that itself, with its repeats and weight.

    Raises:
        ValueError: There is no dataset, the numbers are not one or as many as datasets, two have
            different class images, or classes with and without names are mixed.
    """
    if not datasets:
        raise ValueError("there is no dataset to join: connect at least one")
    times = _each("repeats", repeats, len(datasets))
    factors = _each("weights", weights, len(datasets))
    even_times, even_factors = _balanced(datasets, balance)
    labels = _labels(datasets)
    parts: list[Dataset] = []
    for i, dataset in enumerate(datasets):
        count = int(times[i]) * even_times[i]
        factor = factors[i] * even_factors[i]
        changed = dataset.map(partial(_part, repeats=count, weight=factor, labels=labels))
        parts += changed.parts or (changed,)
    classes, class_weight = _classes(datasets)
    parts = [replace(part, classes=None, class_weight=1.0, warnings=()) for part in parts]
    warnings = tuple(dict.fromkeys(text for dataset in datasets for text in dataset.warnings))
    whole = parts[0] if len(parts) == 1 else _whole(parts)
    return replace(whole, classes=classes, class_weight=class_weight, warnings=warnings)


def _whole(parts: Sequence[Dataset]) -> Dataset:
    return Dataset(
        tuple(item for part in parts for item in part.items),
        trigger=", ".join(dict.fromkeys(part.trigger for part in parts if part.trigger)),
        resolution=max(part.resolution for part in parts),
        source=", ".join(dict.fromkeys(part.source for part in parts if part.source)),
        labels=parts[0].labels,
        parts=tuple(parts),
    )


def _each(what: str, numbers: Sequence[float], count: int) -> Sequence[float]:
    if len(numbers) not in (1, count):
        raise ValueError(
            f"{what} are {len(numbers)} numbers for {count} datasets: give one for all, or one for each"
        )
    return numbers if len(numbers) == count else list(numbers) * count


def _balanced(datasets: Sequence[Dataset], balance: str) -> tuple[list[int], list[float]]:
    """Return repeats and weights that even out what the datasets hold."""
    totals = [sum(item.repeats for item in dataset.items) for dataset in datasets]
    times, factors = [1] * len(totals), [1.0] * len(totals)
    if balance == REPEATS:
        times = [max(1, round(max(totals) / total)) for total in totals]
    elif balance == WEIGHTS:
        factors = [sum(totals) / (len(totals) * total) for total in totals]
    elif balance != AS_GIVEN:
        raise ValueError(f"balance is '{balance}': {', '.join(BALANCES)} are known")
    return times, factors


def _part(part: Dataset, repeats: int, weight: float, labels: tuple[str, ...]) -> Dataset:
    def change(item: Item) -> Item:
        label = item.label
        if label is not None and part.labels:
            label = labels.index(part.labels[label])
        if (repeats, weight, label) == (1, 1.0, item.label):
            return item  # a copy would copy its pixels, too
        return replace(
            item, repeats=item.repeats * repeats, weight=item.weight * weight, label=label
        )

    return replace(part, items=tuple(map(change, part.items)), labels=labels)


def _labels(datasets: Sequence[Dataset]) -> tuple[str, ...]:
    """Return the names of all classes; equal names are one class."""
    labelled = [d for d in datasets if any(item.label is not None for item in d.items)]
    named = [dataset for dataset in labelled if dataset.labels]
    if named and len(named) < len(labelled):
        raise ValueError(
            "some datasets have named classes and some only numbers, which cannot be told apart: load all of them "
            "with a folder for each class"
        )
    if len({dataset.labels for dataset in named}) == 1:
        return named[0].labels
    return tuple(sorted({name for dataset in named for name in dataset.labels}))


def _classes(datasets: Sequence[Dataset]) -> tuple[Dataset | None, float]:
    """Return the class images of all, joined."""
    with_classes = [dataset for dataset in datasets if dataset.classes is not None]
    weights = {dataset.class_weight for dataset in with_classes}
    if len(weights) > 1:
        raise ValueError(
            f"the datasets' class images have different weights, {', '.join(map(str, sorted(weights)))}: add the "
            "class images behind the join"
        )
    distinct = list({id(dataset.classes): dataset.classes for dataset in with_classes}.values())
    if not distinct:
        return None, 1.0
    return join([classes for classes in distinct if classes is not None]), weights.pop()
