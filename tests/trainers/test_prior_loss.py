# SPDX-License-Identifier: Apache-2.0
"""DreamBooth's loss is the mean over the pictures plus prior_weight times the mean over the class images."""

import pytest
import torch

from graft.adapters.attach import Attached
from graft.adapters.full import Full
from graft.trainers.data.batch import Batch
from graft.trainers.loop import Loop
from graft.trainers.objectives import WEIGHTS, Objective
from graft.trainers.optimizers import Optimizer
from graft.trainers.plan import Plan
from graft.trainers.random import Draws

from .toy import Toy, ToyNetwork

WEIGHT = 0.7
CLEAN = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(3))


class Both:
    """Four pictures of a step, and as many class images."""

    buckets = ((6, 6),) * 4

    def batches(self, items, draws):
        for part, first, more in (("", 0, {}), ("class", 4, {"weight": WEIGHT, "plain": True})):
            chosen = [first + item for item in items]
            yield Batch(CLEAN[chosen], torch.tensor(chosen) * 0.1, use=part, **more)


@pytest.mark.parametrize("batch", [4, 2])
@pytest.mark.parametrize("weight", ["one", "min-snr"])
def test_it_is_two_separate_means(batch, weight):
    toy = Toy("eps", ToyNetwork())
    attached = Attached(toy.network, Full(), 0)
    with torch.no_grad():
        for p in attached.parameters().values():
            p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5)))
    objective = Objective(preserve=0.0, weight=WEIGHTS.get(weight)())
    plan = Plan(1, batch_size=batch, accumulate=4 // batch)
    loop = Loop(toy, Both(), attached, objective, Optimizer(), plan)
    items = loop.order.indices(0)
    total = sum(
        sum(loop.backward(items[start : start + batch], range(start, start + batch)))
        for start in range(0, 4, batch)
    )
    found = {name: p.grad.clone() for name, p in attached.parameters().items()}

    means = {}
    for part, first in (("", 0), ("class", 4)):
        chosen = [first + item for item in items]
        draws = Draws(plan.seed, 0, range(4), 4).of(part)
        noised = objective.noised(toy, CLEAN[chosen], draws)
        sigma = noised.sigma.view(-1, 1, 1, 1)
        noise = (noised.x - CLEAN[chosen]) / sigma
        output = toy.network(noised.x, noised.sigma, torch.tensor(chosen) * 0.1)
        errors = (output - noise).square().mean((1, 2, 3))
        snr = noised.sigma**-2  # eps: min(5, snr) / snr
        scale = (5 / snr).clamp(max=1) if weight == "min-snr" and not part else torch.ones(4)
        means[part] = (scale * errors).mean()
    expected = means[""] + WEIGHT * means["class"]
    assert total == pytest.approx(float(expected), rel=1e-4)
    for p in attached.parameters().values():
        p.grad = None
    expected.backward()
    for name, p in attached.parameters().items():
        torch.testing.assert_close(found[name], p.grad, rtol=2e-3, atol=1e-5)
