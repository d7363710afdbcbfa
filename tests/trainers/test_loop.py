# SPDX-License-Identifier: Apache-2.0
"""The loop: accumulation, determinism, resuming, preservation and failures."""

import itertools

import pytest
import torch

from graft.adapters.attach import Attached
from graft.adapters.lora import LoRA
from graft.trainers.loop import Diverged, Loop
from graft.trainers.objectives import Objective
from graft.trainers.optimizers import Optimizer
from graft.trainers.optimizers.adamw import AdamW
from graft.trainers.optimizers.schedules.cosine import Cosine
from graft.trainers.plan import Plan
from tests.trainers.toy import Toy, ToyData, ToyNetwork


def make(
    steps=6,
    batch=2,
    accumulate=2,
    preserve=0.5,
    lr=1e-2,
    seed=3,
    rank=2,
    data=None,
    optimizer=None,
    **plan,
):
    network = ToyNetwork()
    attached = Attached(network, LoRA(rank=rank, blocks="all"), seed)
    optimizer = optimizer or Optimizer(AdamW(lr=lr), Cosine(warmup=1))
    settings = Plan(steps=steps, batch_size=batch, accumulate=accumulate, seed=seed, **plan)
    return Loop(
        Toy("eps", network),
        data or ToyData(preserve=preserve),
        attached,
        Objective(),
        optimizer,
        settings,
    )


def test_every_cut_of_the_effective_batch_gives_the_same_run():
    runs = []
    for batch, accumulate in ((4, 1), (2, 2), (1, 4)):
        loop = make(batch=batch, accumulate=accumulate)
        loop.run()
        runs.append((torch.tensor(loop.losses), loop.network.tensors()))
    for losses, tensors in runs[1:]:
        torch.testing.assert_close(losses, runs[0][0], rtol=1e-5, atol=0)
        for key, value in tensors.items():
            torch.testing.assert_close(value, runs[0][1][key], rtol=1e-3, atol=1e-6)


def test_equal_settings_give_equal_bits_and_another_seed_does_not():
    first, second, other = make(), make(), make(seed=4)
    for loop in (first, second, other):
        loop.run()
    assert first.losses == second.losses != other.losses
    for key, value in first.network.tensors().items():
        assert torch.equal(value, second.network.tensors()[key])


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_run_cut_in_two_equals_one_bit_for_bit(cut):
    whole = make(steps=6)
    whole.run()
    head = make(steps=cut, total_steps=6)
    head.run()
    tail = make(steps=6 - cut, total_steps=6)
    tail.resume(head.state())
    tail.run()
    assert tail.losses == whole.losses
    for key, value in whole.network.tensors().items():
        assert torch.equal(value, tail.network.tensors()[key]), key


def test_the_loss_falls():
    loop = make(steps=80, preserve=0.0, lr=2e-2)
    loop.run()
    assert sum(loop.losses[-20:]) < 0.9 * sum(loop.losses[:20])


def test_first_loss_is_the_plain_mean_squared_error_of_eps():
    """r = (D - y) / sigma = n - F, so the loss of step 1 is mean (n - F)^2, by hand."""
    from graft.trainers import random

    loop = make(steps=1, batch=4, accumulate=1, preserve=0.0)
    items = loop.order.indices(0)
    clean = loop.data.clean[list(items)]
    noise = random.normal(clean.shape[1:], 3, 0, range(4))
    sigma = loop.denoiser.sigmas[(random.uniform(3, 0, range(4), "sigma") * 1000).long()]
    with loop.network.off():
        output = loop.denoiser.network(
            clean + sigma.view(-1, 1, 1, 1) * noise, sigma, loop.data.cond(items)
        )
    loop.run()
    assert loop.losses[0] == pytest.approx(float((noise - output).square().mean()), rel=1e-5)


def test_preservation_is_zero_at_the_start_and_only_reads_the_base():
    """With the adapter at zero effect the prior's loss is 0, so the first losses agree."""
    with_prior, without = make(steps=1, preserve=1.0), make(steps=1, preserve=0.0)
    with_prior.run()
    without.run()
    assert with_prior.losses[0] == pytest.approx(without.losses[0], abs=1e-7)


def test_preservation_keeps_the_base_where_asked():
    drift = {}
    for preserve in (0.0, 4.0):
        loop = make(steps=60, preserve=preserve, lr=2e-2)
        loop.run()
        x = torch.randn(32, 4, 6, 6, generator=torch.Generator().manual_seed(9)) * 2
        sigma, cond = (
            torch.full((32,), 2.0),
            loop.data.prior_cond([i % 3 for i in range(32)]),
        )
        adapted = loop.denoiser(x, sigma, cond).detach()
        with loop.network.off():
            drift[preserve] = float((adapted - loop.denoiser(x, sigma, cond)).square().mean())
    assert drift[4.0] < 0.5 * drift[0.0]


def test_poll_ends_after_the_step_in_hand():
    calls = itertools.count()
    loop = make(steps=9, batch=4, accumulate=1)
    loop.poll = lambda: next(calls) == 2
    assert loop.run() is False
    assert loop.step == 3


def test_a_loss_that_is_not_finite_stops_before_the_step():
    data = ToyData()
    loop = make(steps=3, data=data)
    loop.run()
    before = loop.network.tensors()
    data.clean = data.clean * float("nan")
    loop.end = 6
    with pytest.raises(Diverged, match="step 4"):
        loop.run()
    assert all(torch.equal(value, loop.network.tensors()[key]) for key, value in before.items())


def test_a_layer_without_gradient_is_named():
    network = ToyNetwork()
    network.unused = torch.nn.Linear(2, 2)
    spare = Attached(network, LoRA(rank=2, blocks="all"), 0)
    broken = Loop(Toy("eps", network), ToyData(), spare, Objective(), Optimizer(), Plan(steps=1))
    with pytest.raises(RuntimeError, match="unused"):
        broken.run()


def test_fewer_pictures_than_the_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size is 9 but the dataset has 7"):
        make(batch=9)


@pytest.mark.parametrize(
    "name,value", [("steps", 0), ("batch_size", -1), ("accumulate", 0), ("max_grad_norm", -1.0)]
)
def test_plan_names_the_setting_that_is_out_of_range(name, value):
    with pytest.raises(ValueError, match=name):
        Plan(**{name: value})


def test_resume_refuses_another_seed_or_other_layers():
    loop = make()
    loop.run()
    state = loop.state()
    with pytest.raises(ValueError, match="seed"):
        make(seed=8).resume(state)
    with pytest.raises(ValueError, match="shape"):
        make(rank=3).resume(state)
