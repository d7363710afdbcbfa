# SPDX-License-Identifier: Apache-2.0
"""Whether a training falls apart while its loss is still a number.

Losses of single steps differ tenfold with the noise level that was drawn, and one spike outweighs a hundred of them;
so what is judged is their median m over the last ``WINDOW`` steps. A run diverges when m was above ``factor`` times
its least value *and* above the median of the first losses for ``WINDOW`` steps on end. The second condition is what
keeps a run that has learned much from being stopped: it may lose some of that and still be better than nothing.
"""

import math
from collections import deque
from statistics import median

WINDOW = 50
FIRST = 20  # losses that tell how the run began, and before which nothing is judged


class Divergence:
    """Takes the losses of a run one by one.

    Args:
        factor: How far above its best the median may be; 0 never stops.

    Attributes:
        level: The median of the last ``WINDOW`` losses; infinite before there are ``FIRST``.
        best: The least level so far.
        early: The level after the first ``FIRST`` losses.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._above = 0
        self.level = self.best = self.early = math.inf

    def see(self, loss: float) -> bool:
        """Take the next loss; whether the run is to be stopped."""
        self._recent.append(loss)
        if len(self._recent) < FIRST:
            return False
        self.level = median(self._recent)
        self.best = min(self.best, self.level)
        if self.early == math.inf:
            self.early = self.level
        is_worse = self.level > max(self._factor * self.best, self.early)
        self._above = self._above + 1 if self._factor > 0 and is_worse else 0
        return self._above >= WINDOW

    def forgive(self) -> None:
        """Count anew from here: who goes on from a state may have changed what made it diverge."""
        self._above = 0
