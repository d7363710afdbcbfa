# SPDX-License-Identifier: Apache-2.0
"""A click on a picture of a model's blocks as a change of the text that selects them.

What the user typed stays as it is wherever it can: a click takes its own pattern away where that alone does it, and
is written behind everything else where it does not, as the last part of a selection counts.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence

from .targets import NONE

Select = Callable[[str], Collection[str]]


def clicked(
    text: str, patterns: Sequence[str], layers: Collection[str], is_on: bool, select: Select
) -> str:
    """The selection with some layers in it, or without them.

    Args:
        text: The selection as it is.
        patterns: What selects these layers and no others.
        layers: Their names.
        is_on: Whether they are to be selected.
        select: The layers that a selection takes; raises ValueError where it takes none.

    Returns:
        The new selection.
    """
    text = "" if text.strip() == NONE else text
    parts = _parts(text)
    rest = [part for part in parts if part.removeprefix("-").strip() not in patterns]
    added = [pattern if is_on else f"-{pattern}" for pattern in patterns]
    appended = ", ".join(filter(None, [text.strip().rstrip(",").rstrip(), *added]))
    before = _selected(text, select)
    if before is None and parts:  # what it means is not known, so that none of it may go
        return appended
    wanted = (before or set()) | set(layers) if is_on else (before or set()) - set(layers)
    tries = [", ".join(rest), ", ".join([*rest, *added])] if len(rest) < len(parts) else []
    if not parts and before is None and is_on:
        return ", ".join(added)
    for tried in tries:
        if (_selected(tried, select) or set()) == wanted:
            return tried
    return appended


def weighted(text: str, patterns: Iterable[str], value: float | None) -> str:
    """``pattern=number`` pairs with a number for some patterns, or without one.

    Args:
        text: The pairs as they are.
        patterns: Of the layers that are meant.
        value: Their number; None takes it away.

    Returns:
        The pairs, those of the patterns last, so that they count.
    """
    patterns = list(patterns)
    pairs = [part.strip() for part in re.split(r"[;,\n]", text) if part.strip()]
    kept = [pair for pair in pairs if pair.rpartition("=")[0].strip() not in patterns]
    added = [] if value is None else [f"{pattern}={value:g}" for pattern in patterns]
    return "; ".join([*kept, *added])


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.replace("\n", ",").split(",") if part.strip()]


def _selected(text: str, select: Select) -> set[str] | None:
    """The layers of a selection; None for one that takes none or cannot be read."""
    try:
        return set(select(text))
    except ValueError:
        return None
