# SPDX-License-Identifier: Apache-2.0
"""What is chosen for memory of which every figure is known."""

import pytest
import torch

from graft.trainers.allocations import held
from graft.trainers.memory_plan import (
    Estimate,
    choose,
    estimate,
    kept_now,
    largest_item,
    rehearse,
    state_bytes,
    to_come,
)
from graft.trainers.optimizers import OPTIMIZERS, Optimizer
from tests.trainers.test_loop import make


def device(memory, fixed=10, plain=100, checkpointed=20):
    """A device of ``memory`` bytes; a pass over n pictures takes ``fixed`` + n times the mode's."""
    asked = []

    def measure(is_checkpointed, pictures):
        asked.append((is_checkpointed, pictures))
        needs = fixed + pictures * (checkpointed if is_checkpointed else plain)
        return needs if needs <= memory else None

    return measure, asked


@pytest.mark.parametrize(
    "room,wish,effective,size,mode",
    [
        (410, 4, 4, 4, False),
        (409, 4, 4, 2, False),  # 3 would fit; 2 + 2 takes as many passes as 3 + 1
        (310, 4, 8, 3, False),  # 3 + 3 + 2
        (209, 4, 4, 1, False),
        (110, 4, 4, 1, False),
        (109, 4, 4, 4, True),
        (60, 4, 4, 2, True),
        (30, 4, 4, 1, True),
        (29, 4, 4, 0, True),
        (109, 1, 4, 1, True),
    ],
)
def test_the_largest_pass_that_fits_is_taken_and_checkpointing_only_where_none_does(
    room, wish, effective, size, mode
):
    measure, asked = device(10**6)
    choice = choose(measure, wish, effective, room)
    assert (choice.micro_batch, choice.is_checkpointed) == (size, mode)
    assert max(pictures for _, pictures in asked) <= min(wish, 2)
    if size:
        assert choice.passes[mode](size) <= room


def test_what_runs_out_of_memory_while_it_is_measured_counts_as_too_large():
    measure, asked = device(115)
    choice = choose(measure, 4, 4, 1000)  # whoever says that there is so much
    assert (choice.micro_batch, choice.is_checkpointed) == (1, False)
    assert asked == [(False, 1), (False, 2)]
    measure, asked = device(109)
    choice = choose(measure, 4, 4, 109)
    assert (choice.micro_batch, choice.is_checkpointed) == (4, True)
    assert asked == [(False, 1), (True, 1), (True, 2)]
    assert False not in choice.passes
    measure, _ = device(5)
    choice = choose(measure, 4, 4, 5)
    assert choice.micro_batch == 0 and not choice.passes


def test_one_measurement_is_taken_for_the_picture_alone():
    """So that several are never thought smaller than they are: 110 n is never below 10 + 100 n."""
    measure, _ = device(150)
    assert estimate(measure, False, 4, 1000) == Estimate(0, 110, most=1)
    assert estimate(measure, False, 1, 1000) == Estimate(0, 110)
    measure, _ = device(10**6)
    assert estimate(measure, False, 4, 1000) == Estimate(10, 100)


@pytest.mark.parametrize("mode", [True, False])
def test_a_mode_that_is_not_allowed_is_not_measured(mode):
    measure, asked = device(10**6)
    choice = choose(measure, 4, 4, 15, (mode,))
    assert choice.micro_batch == 0 and choice.is_checkpointed is mode
    assert {m for m, _ in asked} == {mode}


def test_the_largest_picture():
    assert largest_item([(4, 8, 8), (4, 8, 16), (4, 12, 8)]) == 1
    assert largest_item([(16, 1, 8, 8), (16, 3, 8, 8)]) == 1
    assert largest_item(["a", "b"]) == 0


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS.names() if n != "adamw-8bit"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_what_an_optimizer_will_keep_is_what_it_keeps(name, ema):
    algorithm = OPTIMIZERS.get(name)()
    if ema and getattr(algorithm, "averages", False):
        pytest.skip("its result is an average already")
    loop = make(steps=1, rank=8, optimizer=Optimizer(algorithm, ema_decay=ema))
    parameters = held(loop.parameters.values())
    before = {key: value.clone() for key, value in loop.network.tensors().items()}
    predicted, there = to_come(loop), kept_now(loop)
    assert there == parameters * (2 if ema else 1)
    assert all(torch.equal(value, loop.network.tensors()[key]) for key, value in before.items())
    loop.run()
    state = loop.stepper.algorithm.state.values()
    kept = held(v for entry in state for v in entry.values() if isinstance(v, torch.Tensor))
    assert predicted - parameters == pytest.approx(kept, rel=0.05)
    assert kept_now(loop) == there + kept
    assert to_come(loop) == pytest.approx(parameters, rel=0.25)  # gradients; all else is there


def test_adamw_keeps_two_numbers_a_weight_and_a_counter_a_tensor():
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((8, 3), (8, 3), (5,))]
    assert state_bytes(Optimizer(), parameters) == 2 * 4 * (24 + 24 + 5) + 3 * 4


def test_a_rehearsal_changes_nothing_that_the_run_depends_on():
    plain, loop = make(), make()
    state = torch.get_rng_state()
    for pictures in (1, 2):
        rehearse(loop, 3, pictures)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in loop.parameters.values())
    plain.run()
    loop.run()
    assert loop.losses == plain.losses and loop.record.rows == plain.record.rows
    for key, value in plain.network.tensors().items():
        assert torch.equal(value, loop.network.tensors()[key])
