# SPDX-License-Identifier: Apache-2.0
"""How much stratified noise levels lower the variance of a step's loss and gradient: `python -m benchmarks.stratified`.

Two subjects: Gaussian data under the best linear eps network, whose loss at a level is known in closed form, and
graft-mini on twelve drawings with a fresh LoRA. Pictures and noise of a step are the same with and without.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import subjects

BATCHES = (2, 4, 8, 12)


@dataclass
class Spread:
    """Sums over steps, for variances of the loss and of the whole gradient."""

    losses: list[float]
    square: float = 0.0
    total: torch.Tensor | None = None

    def add(self, loss: float, gradient: torch.Tensor) -> None:
        """Add one step."""
        self.losses.append(loss)
        gradient = gradient.double()
        self.square += float(gradient.square().sum())
        self.total = gradient if self.total is None else self.total + gradient

    def variances(self) -> tuple[float, float]:
        """Of the loss, and the trace of the gradient's covariance."""
        n, total = len(self.losses), self.total
        assert total is not None
        loss = float(torch.tensor(self.losses, dtype=torch.float64).var())
        return loss, (self.square - float(total.square().sum()) / n) / (n - 1)


def gaussian(batch: int, steps: int = 4000) -> float:
    """Variance of a step's expected loss, stratified over independent: eps, data N(0, 1), levels of SDXL.

    The expected loss at a level is 1 / (1 + sigma^2).
    """
    from graft.host.model.sampling import of_model
    from graft.trainers.objectives import Objective
    from graft.trainers.random import Draws
    from tests.host import tiny

    model, objective = of_model(tiny.model("sdxl")), Objective()
    variance = []
    for kind in ("stratified", "uniform"):
        draws = [
            getattr(Draws(0, step, range(batch), batch), kind)("sigma") for step in range(steps)
        ]
        sigma = objective.levels(torch.cat(draws), model).view(steps, batch).double()
        variance.append(float((1 / (1 + sigma.square())).mean(1).var()))
    return variance[0] / variance[1]


def mini(wires: Sequence[Any], batch: int, steps: int, weight: str) -> tuple[float, float]:
    """Variances of the loss and of the gradient on graft-mini, stratified over independent.

    Args:
        wires: MODEL, CLIP and VAE of graft-mini.
        batch: Pictures a step.
        steps: Steps to look at; none is taken.
        weight: Name of the objective's weight.
    """
    from graft.adapters.lora import LoRA
    from graft.host.engine import Request
    from graft.nodes.dataset import LoadImages
    from graft.trainers.objectives import WEIGHTS, Objective
    from graft.trainers.plan import Plan

    from .first_step import at_first_step
    from .skeleton.concept import shipped

    model, clip, vae = wires
    found = []
    for is_stratified in (True, False):
        objective = Objective(weight=WEIGHTS.get(weight)(), preserve=0.0, stratified=is_stratified)
        with torch.inference_mode():
            dataset = LoadImages.execute(**shipped(LoadImages) | {"crops": 1}).args[0]
        parts = {"network": LoRA(rank=4), "objective": objective}
        request = Request(model, dataset, vae, clip, plan=Plan(steps, batch_size=batch), **parts)
        found.append(at_first_step(request, lambda loop: _accumulated(loop, steps)).variances())
    return found[0][0] / found[1][0], found[0][1] / found[1][1]


def _accumulated(loop: Any, steps: int) -> Spread:
    """Loss and gradient of every step, without taking it."""
    spread = Spread([])
    for loop.step in range(steps):
        loss = loop._accumulate()
        parts = [p.grad.flatten() for p in loop.parameters.values() if p.grad is not None]
        spread.add(loss, torch.cat(parts))
    return spread


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="steps on graft-mini")
    parser.add_argument("--batch", type=int, default=8, help="pictures a step on graft-mini")
    parser.add_argument("--weights", nargs="+", default=["one", "min-snr"], help="on graft-mini")
    given = parser.parse_args()
    subjects.start()
    from graft.benchmarks import stratified  # the pack's own modules are there from here on
    from graft.host.model.mini import load_mini

    with torch.inference_mode():
        wires = load_mini()
    print("variance with stratified levels over that with independent ones")
    for batch in BATCHES:
        print(f"Gaussian, {batch} pictures a step: loss {stratified.gaussian(batch):.3f}")
    for weight in given.weights:
        loss, gradient = stratified.mini(wires, given.batch, given.steps, weight)
        print(
            f"graft-mini, {weight}, {given.batch} pictures, {given.steps} steps: "
            f"loss {loss:.3f}, gradient {gradient:.3f}"
        )


if __name__ == "__main__":
    main()
