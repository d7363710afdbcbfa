# SPDX-License-Identifier: Apache-2.0
"""Which step of a sampler a call of the model belongs to, and the noise level that the step leads to.

x = signal y + noise n with clean y and normal n, in any family of models: signal is 1 for those of eps, v and EDM, and
1 - t for flows. The level without the family's scale is noise / signal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

EMPTY = 1000.0  # noise / signal from which on there is no picture in x to be guided
_SAME = 1e-4  # relative difference of levels that are one


@dataclass(frozen=True)
class Step:
    """One step of a sampler, from the level at which the model is asked.

    Attributes:
        index: Which step it is, from 0.
        count: How many there are.
        sigma: The level at which the model is asked.
        next: The level that the step leads to.
        signal: Share of the picture in x at sigma.
        noise: Share of the noise in x at sigma.
        signal_next: Share of the picture in x at the next level.
    """

    index: int
    count: int
    sigma: float
    next: float
    signal: float
    noise: float
    signal_next: float

    @property
    def progress(self) -> float:
        """Share of the steps that are done."""
        return self.index / self.count

    @property
    def has_picture(self) -> bool:
        """Whether x holds enough of a picture to be guided; that of a flow at t = 1 holds none."""
        return 0.0 < self.signal and self.noise / self.signal < EMPTY

    @property
    def gain(self) -> float:
        """1 + sigma^2, which is 1 / alpha-bar of a model that keeps the variance."""
        return 1.0 + (self.noise / self.signal) ** 2

    @property
    def share(self) -> float:
        """How much of a change of D is in x after an Euler step."""
        return (1.0 - self.next / self.sigma) / self.signal_next


class Steps:
    """The steps of one run of a sampler.

    Args:
        sigmas: Its levels, falling, one more than there are steps.
        signal: Share of the picture at a level.
        noise: Share of the noise at a level.

    Raises:
        ValueError: There is no step, or the levels rise.
    """

    def __init__(
        self,
        sigmas: Sequence[float],
        signal: Callable[[float], float] = lambda sigma: 1.0,
        noise: Callable[[float], float] = lambda sigma: sigma,
    ) -> None:
        if len(sigmas) < 2:
            raise ValueError(f"Guidance needs at least two SIGMAS, not {len(sigmas)}.")
        for before, after in zip(sigmas, sigmas[1:], strict=False):
            if after > before:
                raise ValueError(
                    f"Guidance needs SIGMAS that fall, and these rise from {before:g} to {after:g}: connect the "
                    "SIGMAS of a scheduler, and the MODEL without guidance where noise is added."
                )
        self._sigmas = [float(s) for s in sigmas]
        self._signal, self._noise = signal, noise
        self._first = 0

    @property
    def count(self) -> int:
        """How many steps there are."""
        return len(self._sigmas) - 1

    def done(self, index: int) -> None:
        """Say that the sampler has come to the end of a step; what it asks from now on is of a later one."""
        self._first = min(index + 1, len(self._sigmas) - 2)

    def at(self, sigma: float) -> Step:
        """The step to which a call of the model at this level belongs.

        That is the first whose level is not above it: a sampler may ask between two levels, or above one, when it
        adds noise before a step. A level of the list is the step from there; the last step leads to 0.

        Args:
            sigma: Above 0.

        Returns:
            The step, from ``sigma``.
        """
        levels = self._sigmas
        index = next((i for i, s in enumerate(levels) if s <= sigma * (1 + _SAME)), len(levels) - 1)
        if levels[index] < sigma * (1 - _SAME):
            index = max(index, self._first)
        later = (s for s in levels[index + 1 :] if s < min(sigma, levels[index]) * (1 - _SAME))
        following = next(later, 0.0)
        shares = self._signal(sigma), self._noise(sigma), self._signal(following)
        return Step(index, self.count, sigma, following, *shares)
