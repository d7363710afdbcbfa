# SPDX-License-Identifier: Apache-2.0
"""Learns how two LoRAs go together: the merged one shall make of each subject what its own LoRA makes of it.

    L = |D(x_c) - D_1(x_c)|^2 + |D(x_s) - D_2(x_s)|^2 + lambda * sum over layers of similarity(m1, m2)

D has the two with their factors, D_1 and D_2 one of them as it is; distances are in the raw network's units, means over
a picture. Both distances of a step have the same draws of noise (Shah et al. 2023; arXiv 2311.13600).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from ..adapters.attach import Attached
from ..adapters.zip import BOTH, FIRST, REPO, SECOND, SIMILARITIES, Turn, ZipLayer
from ..registry import check_limits, option
from .data.order import Order
from .denoiser import Denoiser
from .loop import Data, Diverged
from .objectives import Objective
from .random import Draws

_MEASURED = 8  # pictures of each that the distances before and after are means over
_MEASURING = "measure "


@dataclass(frozen=True)
class ZipPlan:
    """How the factors are learned; the defaults are those of Shah et al.'s re-implementation."""

    steps: int = option(100, "Optimizer steps.", min=1, max=10**6)
    learning_rate: float = option(5e-5, "Learning rate of the factors.", min=0.0, max=10.0)
    similarity_weight: float = option(
        0.01, "lambda: how much the overlap of the factors counts.", min=0.0, max=1e4
    )
    similarity: str = option(
        REPO,
        "What the overlap is. repo: the mean size of the products of two factors, as in the public code; paper: the "
        "size of their sum.",
        choices=SIMILARITIES,
    )
    batch_size: int = option(1, "Pictures of each subject a step.", min=1, max=64)
    seed: int = option(0, "Seed of noise levels, noise and pictures.", min=0, max=2**64 - 1)

    def __post_init__(self) -> None:
        check_limits(self)


@dataclass(frozen=True)
class Reading:
    """How far the merged one is from each, and how much the factors overlap.

    Attributes:
        content: Distance from the first, a mean over fixed draws.
        style: Distance from the second.
        overlap: Mean of |m1 m2| over the columns of all shared layers.
    """

    content: float
    style: float
    overlap: float


@dataclass
class Zipping:
    """A run in progress; ``poll`` is called before every step and may raise, ``tell`` hears step and loss."""

    denoiser: Denoiser
    content: Data
    style: Data
    network: Attached
    turn: Turn
    plan: ZipPlan
    poll: Callable[[], None] = lambda: None
    tell: Callable[[int, float], None] = lambda step, loss: None
    objective: Objective = field(default_factory=Objective)

    def __post_init__(self) -> None:
        self._parts = (
            (self.content, FIRST, self._order(self.content)),
            (self.style, SECOND, self._order(self.style)),
        )
        self.parameters = list(self.network.parameters().values())
        if not self.parameters:
            raise ValueError(
                "The two have no layer in common, so that there is nothing to learn: Merge LoRAs with the mode "
                "'sum' is exact."
            )

    @property
    def layers(self) -> list[ZipLayer]:
        """The layers that both have."""
        every = self.network.layers.values()
        return [layer for layer in every if isinstance(layer, ZipLayer) and layer.is_shared]

    def run(self) -> list[float]:
        """Learn.

        Returns:
            The loss of every step.

        Raises:
            Diverged: A loss was no finite number.
        """
        optimizer = torch.optim.AdamW(self.parameters, lr=self.plan.learning_rate, weight_decay=0.0)
        losses = []
        for step in range(self.plan.steps):
            self.poll()
            optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for part in self._losses(step):
                total += float(part.detach())
                part.backward()  # one after the other: half of the memory
            if not math.isfinite(total):
                raise Diverged(f"The loss is {total} at step {step + 1}. Lower the learning rate.")
            optimizer.step()
            losses.append(total)
            self.tell(step + 1, total)
        return losses

    def loss(self, step: int) -> torch.Tensor:
        """What is minimised in a step."""
        return torch.stack([part.cpu() for part in self._losses(step)]).sum()

    def measure(self, which: str = BOTH) -> Reading:
        """The distances at fixed draws, and the overlap.

        Args:
            which: The distances of what; ``NEITHER`` has those of the model without the two, which factors of 0 have.

        Returns:
            Means over eight pictures of each.
        """
        draws = Draws(self.plan.seed, 0, range(_MEASURED), _MEASURED, _MEASURING)
        with torch.no_grad():
            far = []
            for data, alone, _ in self._parts:
                picked = [slot % len(data.buckets) for slot in range(_MEASURED)]
                each = [
                    float(self._distance(data, alone, [item], draws.only([slot]), which))
                    for slot, item in enumerate(picked)
                ]
                far.append(sum(each) / len(each))
            products = [layer.m_1 * layer.m_2 for layer in self.layers]  # type: ignore[operator]
            overlap = float(torch.cat([p.abs() for p in products]).mean())
        return Reading(far[0], far[1], overlap)

    def _losses(self, step: int) -> Iterator[torch.Tensor]:
        slots = range(self.plan.batch_size)
        for data, which, order in self._parts:
            draws = Draws(self.plan.seed, step, slots, self.plan.batch_size)
            yield self._distance(data, which, order.indices(step), draws)
        if self.plan.similarity_weight:
            terms = [layer.similarity(self.plan.similarity) for layer in self.layers]
            yield self.plan.similarity_weight * torch.stack(terms).sum()

    def _distance(
        self, data: Data, alone: str, items: Sequence[int], draws: Draws, which: str = BOTH
    ) -> torch.Tensor:
        """The mean distance of the merged one from one of the two, on pictures of that one."""
        batch = next(iter(data.batches(items, draws)))
        noised = self.objective.noised(self.denoiser, batch.latents, draws)
        with torch.no_grad(), self._only(alone):
            target = self.denoiser(noised.x, noised.sigma, batch.cond)
        noised = replace(noised, target=target.float())
        with self._only(which):
            return self.objective.sample_loss(self.denoiser, noised, batch).mean()

    @contextmanager
    def _only(self, which: str) -> Iterator[None]:
        self.turn.which = which
        try:
            yield
        finally:
            self.turn.which = BOTH

    def _order(self, data: Data) -> Order:
        if len(data.buckets) < self.plan.batch_size:
            raise ValueError(
                f"batch_size is {self.plan.batch_size} but a dataset has {len(data.buckets)} pictures; lower it."
            )
        return Order(data.buckets, self.plan.batch_size, self.plan.seed)
