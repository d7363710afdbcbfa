# SPDX-License-Identifier: Apache-2.0
"""Whether steps take longer than they did: medians of seconds a step, late against early."""

from collections import deque
from statistics import median

WARM_UP = 5  # steps that compile, allocate and try algorithms out
WINDOW = 20
FACTOR = 1.5
LEAST_S = 0.02  # a smaller difference is the machine's noise
MOST = 3  # warnings in one run


class Drift:
    """Takes the seconds of a run's steps one by one."""

    def __init__(self) -> None:
        self._skipped = self._warned = 0
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._since = 0
        self._level: float | None = None

    def see(self, seconds: float) -> str | None:
        """Take the next step.

        Args:
            seconds: How long it took.

        Returns:
            A warning when steps have become slower since the start, or since the last warning.
        """
        if self._skipped < WARM_UP:
            self._skipped += 1
            return None
        self._recent.append(seconds)
        self._since += 1
        if self._since < WINDOW:
            return None
        now = median(self._recent)
        if self._level is None:
            self._level, self._since = now, 0
            return None
        if self._warned >= MOST or now <= max(FACTOR * self._level, self._level + LEAST_S):
            return None
        before, self._level, self._since = self._level, None, 0  # what comes after is measured anew
        self._warned += 1
        return (
            f"A step takes {now:.2g} s now, before it took {before:.2g} s. Likely causes: the GPU's memory is full and "
            "spills into the computer's (lower batch_size or resolution, or switch checkpointing on), another "
            "program uses the same device, or the device is hot and slows down."
        )
