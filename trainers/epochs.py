# SPDX-License-Identifier: Apache-2.0
"""The mean loss of each epoch: one pass over the order of the pictures, in which repeats count.

An epoch is so many steps as the order says, and its mean is that of its steps' losses. Since these are part of a state,
a run that goes on in the middle of an epoch has the mean of the whole epoch at its end.
"""

import math
from collections.abc import Sequence

from .events import Epoch

LISTED = 8


def epoch_means(losses: Sequence[float], length: int) -> list[float]:
    """The mean loss of every epoch that is whole.

    Args:
        losses: One a step, from the first.
        length: Steps of an epoch.

    Returns:
        The means, from the first epoch.
    """
    return [
        math.fsum(losses[start : start + length]) / length
        for start in range(0, len(losses) - length + 1, length)
    ]


def ended(losses: Sequence[float], length: int) -> Epoch | None:
    """The epoch that the last step ended.

    Args:
        losses: One a step, from the first.
        length: Steps of an epoch.

    Returns:
        Its event, None when the last step is within an epoch.
    """
    number, rest = divmod(len(losses), length)
    if rest or not number:
        return None
    return Epoch(number, len(losses), epoch_means(losses[-length:], length)[0])


def describe(losses: Sequence[float], length: int) -> list[str]:
    """The mean losses in words.

    Args:
        losses: One a step, from the first.
        length: Steps of an epoch.

    Returns:
        A line for a report, or none before the first epoch is whole.
    """
    means = epoch_means(losses, length)
    if not means:
        return []
    if len(means) <= LISTED:
        said = ", ".join(f"{mean:.4f}" for mean in means)
    else:
        best = min(range(len(means)), key=means.__getitem__)
        said = f"{means[0]:.4f} (first) -> {means[best]:.4f} (least, epoch {best + 1}) -> {means[-1]:.4f} (last)"
    epochs = f"{len(means)} epoch{'s' * (len(means) > 1)} of {length} step{'s' * (length > 1)}"
    return [f"{epochs}, mean loss {said}"]
