# SPDX-License-Identifier: Apache-2.0
"""What is chosen for memory of which every figure is known."""

import math

import pytest
import torch

from graft.trainers.allocations import held
from graft.trainers.memory_plan import (
    TRIES,
    Blocks,
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

ALL = 10
MODES = (0, ALL)


def device(memory, fixed=10, plain=100, checkpointed=20):
    """A device of ``memory`` bytes; a pass over n pictures takes ``fixed`` + n times the mode's."""
    asked = []

    def measure(blocks, pictures):
        asked.append((blocks, pictures))
        needs = fixed + pictures * (checkpointed if blocks else plain)
        return needs if needs <= memory else None

    return measure, asked


@pytest.mark.parametrize(
    "room,wish,effective,size,mode",
    [
        (410, 4, 4, 4, 0),
        (409, 4, 4, 2, 0),  # 3 would fit; 2 + 2 takes as many passes as 3 + 1
        (310, 4, 8, 3, 0),  # 3 + 3 + 2
        (209, 4, 4, 1, 0),
        (110, 4, 4, 1, 0),
        (109, 4, 4, 4, ALL),
        (60, 4, 4, 2, ALL),
        (30, 4, 4, 1, ALL),
        (29, 4, 4, 0, ALL),
        (109, 1, 4, 1, ALL),
    ],
)
def test_the_largest_pass_that_fits_is_taken_and_checkpointing_only_where_none_does(
    room, wish, effective, size, mode
):
    """Where what the blocks keep is not known: all of them or none."""
    measure, asked = device(10**6)
    choice = choose(measure, wish, effective, room, MODES)
    assert (choice.micro_batch, choice.checkpointed) == (size, mode)
    assert max(pictures for _, pictures in asked) <= min(wish, 2)
    if size:
        assert choice.passes[mode](size) <= room


def test_what_runs_out_of_memory_while_it_is_measured_counts_as_too_large():
    measure, asked = device(115)
    choice = choose(measure, 4, 4, 1000, MODES)  # whoever says that there is so much
    assert (choice.micro_batch, choice.checkpointed) == (1, 0)
    assert asked == [(0, 1), (0, 2)]
    measure, asked = device(109)
    choice = choose(measure, 4, 4, 109, MODES)
    assert (choice.micro_batch, choice.checkpointed) == (4, ALL)
    assert asked == [(0, 1), (ALL, 1), (ALL, 2)]
    assert 0 not in choice.passes
    measure, _ = device(5)
    choice = choose(measure, 4, 4, 5, MODES)
    assert choice.micro_batch == 0 and not choice.passes


def test_one_measurement_is_taken_for_the_picture_alone():
    """So that several are never thought smaller than they are: 110 n is never below 10 + 100 n."""
    measure, _ = device(150)
    assert estimate(measure, 0, 4, 1000) == Estimate(0, 110, most=1)
    assert estimate(measure, 0, 1, 1000) == Estimate(0, 110)
    measure, _ = device(10**6)
    assert estimate(measure, 0, 4, 1000) == Estimate(10, 100)


@pytest.mark.parametrize("mode", [ALL, 0])
def test_a_mode_that_is_not_allowed_is_not_measured(mode):
    measure, asked = device(10**6)
    choice = choose(measure, 4, 4, 15, (mode,), lambda: BLOCKS)
    assert choice.micro_batch == 0 and choice.checkpointed == mode
    assert {m for m, _ in asked} == {mode}


BLOCKS = Blocks(saved=[40, 10, 30, 0], work=[4, 2, 1, 1])


def test_blocks_that_give_back_the_most_for_their_work_come_first():
    """Bytes for a unit of work, by hand: 10, 5, 30, 0."""
    assert BLOCKS.order == [2, 0, 1, 3]
    assert Blocks([5, 5, 5], [0, 1, 1]).order == [0, 1, 2]  # what costs nothing counts as 1


@pytest.mark.parametrize(
    "checkpointed,most",
    [
        ((), 80),  # all, when the backward pass begins
        ((2,), 80),  # 40 + 10, and then 30 again
        ((0,), 40),  # 10 + 30, or later 40
        ((0, 2), 40),
        ((2, 1), 70),  # 40 + 30
        ((0, 1, 2, 3), 40),
    ],
)
def test_the_most_that_is_kept_is_reached_going_backward(checkpointed, most):
    assert BLOCKS.kept(checkpointed) == most


def network(saved, base=10):
    """Measured passes of a network whose last block alone takes 25 more in its backward pass."""
    asked = []
    blocks = Blocks(saved, [1] * len(saved))

    def measure(count, pictures):
        asked.append((count, pictures))
        kept = blocks.kept(blocks.order[:count])
        return pictures * (
            base + max(kept, sum(saved) - sum(saved[i] for i in blocks.order[:count]) + 25)
        )

    return measure, asked, blocks


@pytest.mark.parametrize("room", range(35, 116, 5))
def test_as_few_blocks_as_make_a_picture_fit(room):
    """Eight blocks of 10: a pass takes 10 + 80 - 10 k + 25 bytes with k of them, at least 35."""
    measure, asked, blocks = network([10] * 8)
    choice = choose(measure, 4, 4, room, (0, 8), lambda: blocks)
    fewest = max(0, math.ceil((115 - room) / 10))
    assert (choice.micro_batch, choice.checkpointed) == (1, fewest)
    assert choice.passes[choice.checkpointed](1) == measure(fewest, 1) <= room
    assert len(asked) <= 3 + TRIES and all(pictures == 1 for _, pictures in asked)


def test_what_runs_out_of_memory_takes_more_blocks():
    """The forecast knows nothing of 30 bytes that only partly checkpointed passes take."""
    _, _, blocks = network([10] * 8)

    def measure(count, pictures):
        needs = 100 if count == 0 else 20 if count == 8 else 100 - 10 * count + 30
        return needs if needs <= 60 else None

    choice = choose(measure, 1, 1, 60, (0, 8), lambda: blocks)
    assert choice.checkpointed == 7 and choice.passes[7](1) == 60


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
