# SPDX-License-Identifier: Apache-2.0
"""What a user should know about a dataset before it is trained on: it works, but hardly as it was meant."""

from .dataset import Dataset
from .framing import RANDOM
from .names import picture_names, some
from .order import overcounted
from .triggers import PLACEHOLDER


def notes(dataset: Dataset, batch: int = 0) -> list[str]:
    """Look at what is decided silently otherwise; no picture is decoded.

    Args:
        dataset: The pictures.
        batch: Pictures in one optimizer step; 0 where that is not known yet.

    Returns:
        Sentences for people, none as a rule.

    Raises:
        ImageError: A file cannot be read.
        ValueError: The framing has no size for a picture.
    """
    names = picture_names(dataset)
    found = _overcounted(dataset, names, batch)
    silent = [name for name, item in zip(names, dataset.items, strict=True) if item.weight == 0]
    if silent:
        found.append(f"Weight 0, so nothing is learned from them: {some(silent)}.")
    start = 0
    for part in dataset.parts or (dataset,):
        found += _of_part(part, names[start : start + len(part)])
        start += len(part)
    return found


def _overcounted(dataset: Dataset, names: list[str], batch: int) -> list[str]:
    sizes = [dataset.size(i) for i in range(len(dataset))]
    times = overcounted(sizes, batch or 2, dataset.repeats)
    if not times:
        return []
    if batch:
        each = some([f"{names[i]} {count:.3g} times" for i, count in times.items()])
        return [
            f"Counted more often than others, as their buckets have too few pictures for a step of {batch}: {each}. "
            "Give them the shape of others (crop them, or use Aspect Ratio Buckets with buckets off or a larger step), "
            "or lower batch_size and accumulate."
        ]
    each = some([f"{names[i]} ({sizes[i][0]} x {sizes[i][1]})" for i in times])
    return [
        f"Alone in a bucket: {each}. With more than one picture in a step it is repeated until the step is full, and "
        "counts that often."
    ]


def _of_part(part: Dataset, names: list[str]) -> list[str]:
    found = []
    if part.framing.crop == RANDOM and part.crops == 1:
        found.append(
            "crop is random but crops is 1, so each picture has one random crop, the same in the whole run: set crops "
            "to 8, say, in the node that loads the pictures."
        )
    how = part.captioning
    pairs = zip(names, part.items, strict=True)
    where = [name for name, item in pairs if any(PLACEHOLDER in text for text in item.captions)]
    where += [kind for kind in ("prefix", "suffix") if PLACEHOLDER in getattr(how, kind)]
    if where and not (how.add_trigger and part.trigger.strip()):
        name_it = (
            "" if part.trigger.strip() else "name the trigger where the pictures are loaded, and "
        )
        found.append(
            f"{PLACEHOLDER} is trained as it stands: {some(where)}. To have the trigger there, {name_it}switch "
            "add_trigger on in Captions."
        )
    return found
