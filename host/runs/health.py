# SPDX-License-Identifier: Apache-2.0
"""What watches a run: its monitor on the host's model, the held-out pictures, and what the report says of them."""

from collections.abc import Callable, Sequence
from typing import Any

from ...adapters.change import Measure
from ...adapters.learned import Learned
from ...plain import percent
from ...trainers.data import Dataset, Item
from ...trainers.events import Sink
from ...trainers.loop import Loop
from ...trainers.memory import Memory
from ...trainers.monitor import Monitor
from ...trainers.plan import Plan
from ...trainers.validation import LEVELS, Validator
from ..data.training_data import TrainingData
from ..model.trainee import Trainee
from .keeper import Keeper

LARGEST = 3  # blocks that the report names
PASSES_A_PICTURE = 3  # of training: forward, and a backward of about two


def notes(
    training: Dataset, held_out: Dataset, plan: Plan, digest: Callable[[Item], str]
) -> list[str]:
    """What is odd about held-out pictures: they are trained on, too, or take longer than the training."""
    known, count = {digest(item) for item in training.items}, len(held_out.items)
    shared = sum(digest(item) in known for item in held_out.items)
    said = []
    if shared:
        said.append(
            f"{shared} of {count} validation pictures are in the training set, too: what they measure is not how the "
            "model does on pictures that it has not seen."
        )
    passes = LEVELS * count
    steps = passes / (PASSES_A_PICTURE * plan.effective_batch)
    if steps > plan.validate_every:
        said.append(
            f"Each look at the {count} validation pictures takes {passes} forward passes, about as long as "
            f"{steps:.0f} steps, and there is one every {plan.validate_every} steps: connect fewer pictures, or raise "
            "validate_every."
        )
    return said


def watch(
    trained: Trainee,
    learned: Learned,
    plan: Plan,
    sink: Sink,
    held_out: TrainingData | None,
    poll: Callable[[], object],
    memory: Memory | None = None,
) -> Monitor:
    """The monitor of one run.

    Args:
        trained: The trainee.
        learned: What is trained on it.
        plan: How often to look, and when to end.
        sink: Hears of validations and warnings.
        held_out: The validation pictures, if there are any.
        poll: Called before every forward pass; raises to interrupt.
        memory: How large a forward pass may be.
    """
    layers, validator = list(learned.layers.values()), None
    if held_out is not None:
        given = (plan.seed, plan.batch_size, poll, layers)
        validator = Validator(trained.denoiser, held_out, *given, memory)
    measure = Measure(trained.diffusion_model, learned.model.layers)
    monitor = Monitor(learned.tensors, plan, sink, validator, measure)
    if memory is not None:
        memory.changed = monitor.slower
    return monitor


def lines(monitor: Monitor) -> list[str]:
    """What the report says of a run's health."""
    said = []
    if monitor.rows:
        first, last = monitor.rows[0], monitor.rows[-1]
        best = min(monitor.rows, key=lambda row: row[1])
        said.append(
            f"validation loss {first[1]:.4f} (step {first[0]}) -> {best[1]:.4f} best (step {best[0]}) -> "
            f"{last[1]:.4f} (step {last[0]})"
        )
    change = monitor.last
    if change.blocks:
        most = ", ".join(f"{name} {percent(ratio)}" for name, ratio in change.largest(LARGEST))
        said.append(f"changed most, |dW| / |W|: {most}")
    if change.skipped:
        said.append(
            f"{len(change.skipped)} layers have no |dW| / |W|: quantised, or of another kind"
        )
    return said


def kept(monitor: Monitor, keeper: Keeper, loop: Loop) -> list[str]:
    """Write the state that is not delivered, where the best is another one than the last; says which is which."""
    best = monitor.better()
    said = [monitor.stopped] if monitor.stopped else []
    if best is None:
        return said
    which = f"the best by {monitor.measure} is that of step {best.step} ({best.loss:.4f})"
    if monitor.stopped:
        where = keeper.save_beside(loop, "last")
        return [*said, f"{which}, which is delivered; that of step {loop.step}: {where}"]
    return [*said, f"{which}: {keeper.save_beside(loop, 'best', best)}"]


def loss_map(losses: Sequence[float], rows: Sequence[tuple[int, float]]) -> dict[str, list[Any]]:
    """The LOSS_MAP: losses of all steps, and with a validation its losses and their steps."""
    made: dict[str, list[Any]] = {"loss": list(losses)}
    if rows:
        made |= {"validation": [loss for _, loss in rows], "validation_steps": [s for s, _ in rows]}
    return made
