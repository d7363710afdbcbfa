# SPDX-License-Identifier: Apache-2.0
"""A run that is out of memory in mid step goes on as if it had not been; the oracle is the undisturbed run."""

import dataclasses
import gc
import itertools
import weakref

import pytest
import torch

from graft.adapters.attach import Attached
from graft.adapters.lora import LoRA
from graft.trainers.events import Warned
from graft.trainers.loop import Loop
from graft.trainers.memory import Memory, OutOfMemory, Relief
from graft.trainers.objectives import NOISE, Objective
from graft.trainers.optimizers import Optimizer
from graft.trainers.optimizers.adamw import AdamW
from graft.trainers.plan import Plan
from tests.trainers.toy import Toy, ToyData, ToyNetwork

LEARNED = {"noise": NOISE.get("log-normal")(), "stratified": True, "learn_log_variance": True}


class Scarce(Toy):
    """A toy denoiser on a device that holds ``room(step, call)`` pictures with their activations."""

    def __init__(self, network, room, place="forward"):
        super().__init__("eps", network)
        self.room, self.place, self.calls = room, place, []
        self.loop, self.is_checkpointed, self.seen = None, False, []

    def __call__(self, x, sigma, cond):
        step = self.loop.step
        self.calls.append((step, len(x), torch.is_grad_enabled()))
        room = self.room(step, sum(1 for s, _, _ in self.calls if s == step))
        is_full = len(x) > (2 * room if self.is_checkpointed else room)
        if is_full and self.place == "forward":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 MiB.")
        out = super().__call__(x, sigma, cond)
        if torch.is_grad_enabled():
            self.seen.append(weakref.ref(out))
        if is_full and self.place == "backward" and out.requires_grad:

            def fail(gradient):
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 MiB.")

            out.register_hook(fail)
        return out


def make(room=lambda step, call: 99, place="forward", preserve=0.5, can_checkpoint=True, **changes):
    network = ToyNetwork()
    attached = Attached(network, LoRA(rank=2, blocks="all"), 3)
    denoiser = Scarce(network, room, place)
    freed = []

    def checkpoint():
        was, denoiser.is_checkpointed = denoiser.is_checkpointed, True
        return can_checkpoint and not was

    def free():
        gc.collect()
        freed.append([ref for ref in denoiser.seen if ref() is not None])

    events = []
    loop = Loop(
        denoiser,
        ToyData(preserve=preserve),
        attached,
        Objective(**changes.pop("objective", {})),
        changes.pop("optimizer", None) or Optimizer(AdamW(lr=1e-2)),
        Plan(**({"steps": 6, "batch_size": 4, "seed": 3} | changes)),
        sink=events.append,
        memory=Memory(relief=Relief(free=free, checkpoint=checkpoint), sink=events.append),
    )
    denoiser.loop = loop
    loop.events, loop.freed = events, freed
    return loop


def at(*steps, room=1, until=99):
    """So much room in these steps, as long as less than ``until`` calls were made in them; else plenty."""
    return lambda step, call: room if step in steps and call < until else 99


def warnings(loop):
    return [event.text for event in loop.events if isinstance(event, Warned)]


def assert_same(loop, whole):
    torch.testing.assert_close(
        torch.tensor(loop.losses), torch.tensor(whole.losses), rtol=1e-5, atol=0
    )
    for key, value in whole.network.tensors().items():
        torch.testing.assert_close(loop.network.tensors()[key], value, rtol=1e-3, atol=2e-6)
    assert [len(levels) for levels, _ in loop.record.rows] == [
        len(levels) for levels, _ in whole.record.rows
    ]
    for (levels, losses), (expected, own) in zip(loop.record.rows, whole.record.rows, strict=True):
        assert levels == pytest.approx(expected, rel=1e-6)
        assert losses == pytest.approx(own, rel=1e-4)


@pytest.mark.parametrize("place", ["forward", "backward"])
@pytest.mark.parametrize("step", [0, 3, 5])
@pytest.mark.parametrize("room,left", [(2, 2), (1, 1)])
def test_a_step_that_runs_out_of_memory_gives_the_same_losses(place, step, room, left):
    whole, loop = make(), make(at(step, room=room), place)
    whole.run()
    assert loop.run()
    assert loop.memory.micro_batch == left
    assert len(warnings(loop)) == {2: 1, 1: 2}[left]
    assert f"at step {step + 1}" in warnings(loop)[0]
    assert loop.memory.told == warnings(loop)
    assert_same(loop, whole)
    assert all(size <= left for s, size, _ in loop.denoiser.calls if s > step)


@pytest.mark.parametrize(
    "changes",
    [
        {"preserve": 0.0},
        {"batch_size": 3, "accumulate": 2},
        {"batch_size": 5},
        {"objective": LEARNED},
        {"optimizer": Optimizer(AdamW(lr=1e-2), ema_decay=0.9)},
    ],
    ids=["no-prior", "3x2", "5", "learned", "ema"],
)
@pytest.mark.parametrize("place", ["forward", "backward"])
def test_whatever_is_trained_twice_out_of_memory_changes_nothing(changes, place):
    def room(step, call):
        return {1: 2, 3: 1}.get(step, 99)

    whole, loop = make(**changes), make(room, place, **changes)
    for one in (whole, loop):
        one.run()
    assert loop.memory.micro_batch == 1
    assert_same(loop, whole)
    if "objective" in changes:
        for name, value in whole.log_variance.state().items():
            torch.testing.assert_close(loop.log_variance.state()[name], value, rtol=1e-4, atol=1e-6)
    for name, shadow in whole.state().ema.items():
        torch.testing.assert_close(loop.state().ema[name], shadow, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_every_pass_of_a_step_may_be_the_one_that_fails(call):
    """The passes of step 3 are: picture, base of the prior, prior, and again for the second micro-batch."""
    hit = itertools.count()

    def room(step, number):
        return 1 if step == 2 and number == call and next(hit) == 0 else 99

    whole, loop = make(accumulate=2, batch_size=2), make(room, accumulate=2, batch_size=2)
    whole.run()
    loop.run()
    assert len(warnings(loop)) == 1
    assert_same(loop, whole)


def test_nothing_of_the_failed_attempt_is_alive_when_memory_is_given_back():
    loop = make(at(2, room=1), "backward")
    loop.run()
    assert len(loop.freed) == 2
    assert loop.freed == [[], []]


def test_gradients_of_the_failed_attempt_are_gone_before_memory_is_given_back():
    loop = make(at(2, room=2), "backward", batch_size=4, objective=LEARNED)
    free, seen = loop.memory._relief.free, []

    def look():
        seen.append([p.grad is None for p in loop.parameters.values()])
        seen.append([loop.log_variance.weights.grad is None])
        free()

    loop.memory._relief = Relief(free=look, checkpoint=lambda: False)
    loop.run()
    assert seen and all(all(gone) for gone in seen)


def test_checkpointing_comes_after_the_last_picture_and_stays():
    loop, whole = make(lambda step, call: 0.5 if step >= 2 else 99), make()
    loop.run()
    whole.run()
    assert loop.memory.micro_batch == 1 and loop.denoiser.is_checkpointed
    assert [("checkpointing" in text) for text in warnings(loop)] == [False, False, True]
    assert_same(loop, whole)


@pytest.mark.parametrize("can_checkpoint", [True, False])
def test_nothing_left_to_try_is_a_clear_end_with_the_weights_before_the_step(can_checkpoint):
    loop, whole = make(at(3, room=0), can_checkpoint=can_checkpoint), make(steps=3)
    whole.run()
    with pytest.raises(OutOfMemory) as caught:
        loop.run()
    text = str(caught.value)
    assert "at step 4 (CUDA out of memory" in text
    assert "4 in a forward pass, then 2 in a forward pass, then 1 in a forward pass" in text
    assert "checkpointing is on" in text and "resolution" in text and "rank" in text
    assert caught.value.__context__ is None  # nothing holds what the attempt had computed
    assert loop.step == 3
    for key, value in whole.network.tensors().items():
        assert torch.equal(loop.network.tensors()[key], value)
    assert loop.losses == whole.losses


def test_weights_go_to_the_cpu_when_checkpointing_does_not_do():
    """1/4 of a picture fits: 1/2 with checkpointing, one with the weights elsewhere, too."""
    loop, whole, moved = make(lambda step, call: 0.25 if step >= 2 else 99), make(), []

    def offload():
        moved.append(loop.step)
        loop.denoiser.room = lambda step, call: 99
        return True

    relief = loop.memory._relief
    loop.memory._relief = dataclasses.replace(relief, offload=offload)
    loop.run()
    whole.run()
    assert moved == [2]
    assert ["CPU" in text for text in warnings(loop)] == [False, False, False, True]
    assert_same(loop, whole)


def test_a_model_without_blocks_says_so_at_the_end():
    def refuse():
        raise ValueError("found no blocks in Toy")

    loop = make(at(1, room=0))
    loop.memory._relief = Relief(checkpoint=refuse)
    with pytest.raises(OutOfMemory, match="found no blocks in Toy"):
        loop.run()


def test_memory_that_ends_while_weights_move_ends_the_run_and_names_the_optimizer(monkeypatch):
    loop = make()
    real = loop.stepper.algorithm.step

    def step():
        if loop.step == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        real()

    monkeypatch.setattr(loop.stepper.algorithm, "step", step)
    with pytest.raises(OutOfMemory, match="at step 3, while the weights were moved .* adafactor"):
        loop.run()
    assert loop.step == 2


def test_other_errors_pass_unchanged():
    loop = make()

    def fail(*args):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    loop.denoiser.network.forward = fail
    with pytest.raises(RuntimeError, match="mat1"):
        loop.run()
    assert not warnings(loop)


def test_a_finish_request_in_the_failed_attempt_is_not_lost():
    loop = make(at(1, room=2))
    calls = iter([False, True])  # asked in step 1, and before the attempt of step 2 that fails
    loop.poll = lambda: next(calls, False)
    assert loop.run() is False
    assert loop.step == 2


def test_a_run_that_goes_on_begins_with_the_whole_batch_again():
    whole, head = make(), make(at(1), steps=3, total_steps=6)
    whole.run()
    head.run()
    tail = make(steps=3, total_steps=6)
    tail.resume(head.state())
    tail.run()
    assert tail.memory.micro_batch == 4
    assert_same(tail, whole)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_a_cut_has_every_slot_once(size):
    parts = Memory(size).cut(7)
    assert [slot for part in parts for slot in part] == list(range(7))
    assert max(map(len, parts)) == size
