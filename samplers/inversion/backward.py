# SPDX-License-Identifier: Apache-2.0
"""The way of a sampler without noise, backward: at each level the latent whose step leads to the one below.

A step down is x' = S(x); x is found by x <- x + (x' - S(x)), of which the first alone is DDIM inversion as it is known
(Song et al. 2020; Mokady et al. 2022, arXiv 2211.09794), and the fixed point is the exact inverse (Pan et al. 2023,
arXiv 2309.04907). Steps that look at the one before, which is not known on the way up, are solved in sweeps over all
levels (cf. Hong et al. 2024, arXiv 2311.18387): each takes D of the level above from the sweep before it, and the first
continues the line of D below.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ..parts import Denoise, Levels, Sampler, Step, Stepped
from .parts import Inversion, Watch, stacked

SLOPE, LATENT = "slope", "latent"
_RELAXED = (0.1, 2.0)
_LOST = 4.0  # times the least error that was met, at which a solution is given up
_LATER = 2  # iterations of a later sweep, which begins where the one before it ended


@dataclass(frozen=True)
class Effort:
    """How exactly a step is solved.

    Attributes:
        iterations: Most evaluations of a step at each level, the later sweeps' apart.
        tolerance: Where they end: root mean square of x' - S(x), in units of the latent's spread.
        sweeps: Over all levels; more than one for samplers that look at the step before.
        guess: Where they begin: "slope" goes on as the step below went, "latent" scales the latent below.
    """

    iterations: int
    tolerance: float
    guess: str = SLOPE
    sweeps: int = 1


def backward(
    sampler: Sampler,
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: Sequence[float],
    effort: Effort,
    *,
    looks_back: bool = False,
    levels: Levels | None = None,
    watch: Watch | None = None,
) -> Inversion:
    """Go up.

    Args:
        sampler: One that adds no noise.
        denoise: D.
        x: The latent at the last level ``[B, ...]``.
        sigmas: The levels, falling, each once ``[N + 1]``.
        effort: How exactly.
        looks_back: Whether the sampler looks at the step before.
        levels: Those of the model, where they are known.
        watch: Told of each step.

    Returns:
        The inversion, without rests.
    """
    way = _Way(sampler, _Memory(denoise), tuple(sigmas), effort, looks_back, levels)
    sweeps = effort.sweeps if looks_back else 1
    total = sweeps * (len(sigmas) - 1)
    residual = 0.0
    for sweep in range(sweeps):
        residual = 0.0
        way.begin(x)
        for done, i in enumerate(reversed(range(len(sigmas) - 1))):
            step, error = way.up(i, is_first=sweep == 0)
            residual = max(residual, error)
            if watch is not None:
                watch(sweep * (len(sigmas) - 1) + done, total, step)
    return way.inversion(residual)


@dataclass
class _Way:
    sampler: Sampler
    denoise: "_Memory"
    sigmas: tuple[float, ...]
    effort: Effort
    looks_back: bool
    levels: Levels | None
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    denoised: dict[int, torch.Tensor] = field(default_factory=dict)
    relaxed: dict[int, torch.Tensor] = field(default_factory=dict)
    slope: torch.Tensor | None = None

    def begin(self, x: torch.Tensor) -> None:
        """A sweep starts at the picture."""
        self.states[len(self.sigmas) - 1], self.slope = x, None

    def up(self, i: int, *, is_first: bool) -> tuple[Stepped, float]:
        """From level i + 1 to level i; the last step that was tried, and its error."""
        sigma, to = self.sigmas[i], self.sigmas[i + 1]
        target = self.states[i + 1]

        def step(x: torch.Tensor) -> Stepped:
            before = self._before(i, x, is_first=is_first)
            return self.sampler.step(
                self.denoise,
                x,
                Step(len(self.sigmas) - 1, sigma, to, _no_noise, before, self.levels),
            )

        start = self._guess(i) if is_first else self.states[i]
        unit = 1.0 if self._is_flow else (1 + sigma**2) ** 0.5
        most = self.effort.iterations if is_first else min(self.effort.iterations, _LATER)
        limit = self.effort.tolerance * unit
        relaxed = self.relaxed.get(i)
        self.states[i], done, self.relaxed[i], error = _solve(
            step, target, start, relaxed, most, limit
        )
        self.denoised[i] = done.denoised
        self.slope = (done.asked - done.denoised) / done.sigma
        return done, error / unit

    def inversion(self, residual: float) -> Inversion:
        """What came of it."""
        count = len(self.sigmas)
        denoised = (
            stacked([self.denoised[i] for i in range(count - 1)]) if self.looks_back else None
        )
        states = stacked([self.states[i] for i in range(count)])
        calls = self.denoise.calls
        return Inversion(self.sampler, self.sigmas, states, None, denoised, calls, residual)

    @property
    def _is_flow(self) -> bool:
        return self.levels is not None and self.levels.family == "flow"

    def _guess(self, i: int) -> torch.Tensor:
        sigma, to, below = self.sigmas[i], self.sigmas[i + 1], self.states[i + 1]
        if self.effort.guess == LATENT:
            scale = 1.0 if self._is_flow else ((1 + sigma**2) / (1 + to**2)) ** 0.5
            return below * scale
        return below if self.slope is None else below + self.slope * (sigma - to)

    def _before(
        self, i: int, x: torch.Tensor, *, is_first: bool
    ) -> tuple[float, torch.Tensor] | None:
        """Level and D of the step before step i, as far as they are known."""
        if not self.looks_back or i == 0:
            return None
        above, sigma, to = self.sigmas[i - 1], self.sigmas[i], self.sigmas[i + 1]
        if not is_first:
            return above, self.denoised[i - 1]
        if to == 0 or i + 1 not in self.denoised:
            return None
        here = self.denoise(x, sigma)
        ratio = math.log(above / sigma) / math.log(sigma / to)
        return above, here + (here - self.denoised[i + 1]) * ratio


class _Memory:
    """D, counted, which is not asked twice for the same latent in a row."""

    def __init__(self, inner: Denoise) -> None:
        self._inner, self.calls = inner, 0
        self._last: tuple[torch.Tensor, float, torch.Tensor] | None = None

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        if self._last is not None and self._last[0] is x and self._last[1] == sigma:
            return self._last[2]
        self.calls += 1
        denoised = self._inner(x, sigma)
        self._last = x, sigma, denoised
        return denoised


def _solve(
    step: Callable[[torch.Tensor], Stepped],
    target: torch.Tensor,
    x: torch.Tensor,
    relaxed: torch.Tensor | None,
    most: int,
    limit: float,
) -> tuple[torch.Tensor, Stepped, torch.Tensor, float]:
    """x whose step leads to ``target``, by x <- x + w (target - step(x)) with Aitken's w, which is 1 at first.

    Each sample of a batch has its own w, and ends by itself. It gives x, the last step that was tried, w ``[B]``, and
    the largest error that is known.
    """
    batch = target.shape[0]
    wide = (batch,) + (1,) * (target.ndim - 1)
    w = target.new_ones(batch) if relaxed is None else relaxed
    least, best = target.new_full((batch,), math.inf), x
    is_open = torch.ones(batch, dtype=torch.bool, device=target.device)
    before: torch.Tensor | None = None
    for _ in range(most):
        done = step(x)
        rest = target - done.x
        error = rest.reshape(batch, -1).square().mean(dim=1).sqrt()
        is_best = is_open & (error < least)
        best = torch.where(is_best.view(wide), x, best)
        least = torch.where(is_best, error, least)
        if before is not None:
            w = torch.where(is_open, _aitken(w, before, rest), w)
        is_lost = ~(error < _LOST * least)  # nan, too
        ahead = torch.where(is_lost.view(wide), best, x + rest * w.view(wide))
        x = torch.where(is_open.view(wide), ahead, x)
        is_open = is_open & ~is_lost & (error > limit)
        before = rest
        if not bool(is_open.any()):
            break
    return x, done, w, float(least.max())


def _aitken(w: torch.Tensor, before: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """The next w ``[B]``, as if the last step of x had changed the error along a line."""
    change = (rest - before).flatten(1)
    found = -w * (before.flatten(1) * change).sum(dim=1) / change.square().sum(dim=1)
    return torch.where(torch.isfinite(found), found, w).clamp(*_RELAXED)


def _no_noise() -> torch.Tensor:
    raise RuntimeError("A sampler that is inverted backward must not draw noise.")
