# SPDX-License-Identifier: Apache-2.0
"""Optimizers in the loop: what a state carries, what is told, and what a run hands out."""

import dataclasses

import pytest
import torch

from graft.adapters.attach import Attached
from graft.adapters.lora import LoRA
from graft.trainers.events import Progress
from graft.trainers.loop import Loop
from graft.trainers.objectives import Objective
from graft.trainers.optimizers import Optimizer
from graft.trainers.optimizers.adamw import AdamW
from graft.trainers.optimizers.prodigy import Prodigy
from graft.trainers.optimizers.schedule_free_adamw import ScheduleFreeAdamW
from graft.trainers.optimizers.schedules.cosine import Cosine
from graft.trainers.plan import Plan
from graft.trainers.state import State
from graft.trainers.stepping import Stepper
from tests.trainers.optimizers.test_conformance import HERE, algorithm, descend, parameters
from tests.trainers.test_loop import make
from tests.trainers.toy import Toy, ToyData, ToyNetwork


@pytest.mark.parametrize("name", HERE)
def test_three_and_three_of_six_equals_six(name):
    averages = getattr(algorithm(name), "averages", False)
    settings = Optimizer(algorithm(name), Cosine(1), ema_decay=0.0 if averages else 0.9)
    whole, head, tail = (make(n, optimizer=settings, total_steps=6) for n in (6, 3, 3))
    whole.run()
    head.run()
    tail.resume(head.state())
    tail.run()
    assert tail.losses == whole.losses
    raw, result = whole.network.tensors(), None
    for key, value in raw.items():
        assert torch.equal(value, tail.network.tensors()[key]), key
    with whole.averaged(), tail.averaged():
        result = whole.network.tensors()
        for key, value in result.items():
            assert torch.equal(value, tail.network.tensors()[key]), key
    has_average = averages or settings.ema_decay > 0
    ups = [key for key in raw if key.endswith("up.weight")]
    assert all(torch.equal(raw[key], result[key]) != has_average for key in ups)


def test_prodigys_estimate_is_in_the_state_and_needs_the_same_groups():
    settings = Optimizer(Prodigy(d0=1e-2))
    head = descend(Stepper(settings, parameters()), 9, 18)
    state = State(9, 18, 0, {}, **head.state())
    assert [group["k"] for group in state.groups] == [9, 9]
    assert state.groups[0]["d"] > 1e-2
    tail = Stepper(settings, parameters())
    tail.load(state)
    assert tail.lr(8, 18) == head.lr(8, 18) > 1e-2
    fewer = {"a.down": torch.nn.Parameter(torch.zeros(2))}
    with pytest.raises(ValueError, match="other parameters"):
        Stepper(settings, fewer).load(state)
    other = dataclasses.replace(state, groups=state.groups[:1])
    with pytest.raises(ValueError, match=r"in 1 groups, and these settings make 2"):
        Stepper(settings, parameters()).load(other)


def test_moments_by_name_outlive_a_change_of_the_groups():
    """AdamW's groups have nothing of their own, so LoRA+ may begin in the middle."""
    head = descend(Stepper(Optimizer(AdamW(0.01)), parameters()), 3, 6)
    state = State(3, 6, 0, {}, **head.state())
    tail = Stepper(Optimizer(AdamW(0.01), loraplus_ratio=4.0), parameters())
    tail.load(state)
    for name, entries in tail.state()["optimizer"].items():
        assert all(torch.equal(value, entries[key]) for key, value in state.optimizer[name].items())


def test_an_average_that_begins_late_begins_at_the_weights():
    head = make(3, total_steps=6)
    head.run()
    tail = make(3, total_steps=6, optimizer=Optimizer(AdamW(1e-2), Cosine(1), ema_decay=0.9))
    tail.resume(head.state())
    assert tail.stepper.ema.updates == 0
    assert all(map(torch.equal, tail.stepper.ema.state().values(), tail.parameters.values()))


def test_an_average_changes_nothing_of_the_training():
    with_average, without = (
        make(6, optimizer=Optimizer(AdamW(1e-2), ema_decay=decay)) for decay in (0.9, 0.0)
    )
    for loop in (with_average, without):
        loop.run()
    assert with_average.losses == without.losses


def test_the_rate_that_is_told_is_the_effective_one():
    told = []
    loop = make(4, optimizer=Optimizer(AdamW(0.02), Cosine(warmup=1)))
    loop.sink = told.append
    loop.run()
    assert [event.lr for event in told if isinstance(event, Progress)] == [
        loop.optimizer.lr(step, 4) for step in range(4)
    ]
    told.clear()
    loop = make(4, optimizer=Optimizer(Prodigy(0.5, d0=1e-3)))
    loop.sink = told.append
    loop.run()
    assert told[0].lr == 0.5 * 1e-3


@pytest.mark.parametrize("settings", [AdamW(1e-2), Prodigy(d0=1e-3), ScheduleFreeAdamW(1e-2)])
def test_weights_and_state_are_fp32_under_bf16_compute(settings):
    """The layers' own computation is in bf16; steps far below bf16's resolution still add up."""
    network = ToyNetwork().bfloat16()
    attached = Attached(network, LoRA(rank=2, blocks="attn2"), 3)

    class Half(Toy):
        def __call__(self, x, sigma, cond):
            output = self.network(x.bfloat16(), sigma.bfloat16(), cond.bfloat16())
            return self.combine(sigma, output.float(), x)

    data = ToyData(preserve=0.0)
    loop = Loop(
        Half("eps", network), data, attached, Objective(), Optimizer(settings), Plan(steps=3)
    )
    loop.run()
    assert {p.dtype for p in loop.parameters.values()} == {torch.float32}
    state = loop.state()
    tensors = [
        value
        for entries in state.optimizer.values()
        for key, value in entries.items()
        if isinstance(value, torch.Tensor)
    ]
    assert tensors and {t.dtype for t in tensors} == {torch.float32}
    moved = torch.cat([p.detach().flatten() for p in loop.parameters.values()])
    assert not torch.equal(moved, moved.bfloat16().float())
