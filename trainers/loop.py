# SPDX-License-Identifier: Apache-2.0
"""The one training loop, blind to the algorithm.

Batch, sigma, noise; D; residual; weight; backward; clip; step; events. The effective batch is cut
into micro-batches whose losses are sums over samples divided by the effective batch, so every cut
of it gives the same gradient.
"""

import contextlib
import math
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from .data.batch import Batch
from .data.order import Order
from .denoiser import Denoiser
from .epochs import ended
from .events import Progress, Sink
from .memory import Memory
from .objectives import Objective
from .objectives.log_variance import LogVariance
from .optimizers import Optimizer
from .plan import Plan
from .random import Draws
from .record import Record
from .state import State
from .stepping import Stepper


class Data(Protocol):
    """What the loop trains on, by the number of the picture."""

    @property
    def buckets(self) -> Sequence[Hashable]:
        """The bucket of each picture."""

    def batches(self, items: Sequence[int], draws: Draws) -> Iterator[Batch]:
        """What the slots with these pictures train on, then what is to stay; every choice is one of ``draws``."""


class Trained(Protocol):
    """The trainable part: named parameters, tensors for files, and an off switch."""

    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        """Trainable parameters by name."""

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Copies of the weights as a file names them."""

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what ``tensors()`` gave."""

    def off(self) -> contextlib.AbstractContextManager[None]:
        """The base model inside the block."""

    def draw(self, draws: Draws | None) -> None:
        """Drop out by these draws of a batch from now on; by none, nothing."""

    def settle(self, moved: Collection[str]) -> None:
        """What has to hold after every step, for the parameters of these names that it moved."""


class Diverged(RuntimeError):
    """The loss or the gradient is not a finite number; the step was not taken."""


@dataclass
class Loop:
    """A run in progress.

    ``poll`` is called before every micro-batch; it may raise to interrupt the run, and returns True to end it after the
    step in hand as if it were done. ``monitor`` gets what ``sink`` gets of every step, and can end the run in the same
    way. ``after`` is called after every step, and with 0 before the first one of a fresh run. ``memory`` says how large
    micro-batches are, and what becomes of a step that runs out of it.
    """

    denoiser: Denoiser
    data: Data
    network: Trained
    objective: Objective
    optimizer: Optimizer
    plan: Plan
    sink: Sink = lambda event: None
    poll: Callable[[], bool] = lambda: False
    after: Callable[[int], None] = lambda step: None
    monitor: Callable[[Progress], bool] = lambda event: False
    memory: Memory = field(default_factory=Memory)
    step: int = field(default=0, init=False)
    losses: list[float] = field(default_factory=list, init=False)
    record: Record = field(default_factory=Record, init=False)

    def __post_init__(self) -> None:
        if self.plan.batch_size > len(self.data.buckets):
            raise ValueError(
                f"batch_size is {self.plan.batch_size} but the dataset has {len(self.data.buckets)} pictures; "
                "lower batch_size or add pictures."
            )
        self.parameters = dict(self.network.parameters())
        self.stepper = Stepper(self.optimizer, self.parameters)
        self.log_variance = None
        if self.objective.learn_log_variance:
            self.log_variance = LogVariance(next(iter(self.parameters.values())).device)
        self.order = Order(self.data.buckets, self.plan.effective_batch, self.plan.seed)
        self.total = self.plan.total_steps or self.plan.steps
        self.end = self.plan.steps
        self.memory.micro_batch = self.memory.micro_batch or self.plan.batch_size
        self._wants_end = False

    def resume(self, state: State, end: int | None = None) -> None:
        """Continue from a state: its step, plan length, weights, optimizer and losses.

        Args:
            state: What ``state()`` gave.
            end: The step to train to; ``plan.steps`` more by default.

        Raises:
            ValueError: The state's seed or layers are not those of this run.
        """
        if state.seed != self.plan.seed:
            raise ValueError(
                f"The state was trained with seed {state.seed}, not {self.plan.seed}; use the same seed."
            )
        self.network.load(state.adapter)
        self.stepper.load(state)
        if self.log_variance is not None:
            self.log_variance.load(state.log_variance)
        self.step, self.losses = state.step, list(state.losses)
        self.record = Record(state.record, state.step)
        self.end = self.step + self.plan.steps if end is None else end
        self.total = self.plan.total_steps or max(state.total_steps, self.end)

    def state(self) -> State:
        """The present state, as a value."""
        return State(
            step=self.step,
            total_steps=self.total,
            seed=self.plan.seed,
            adapter=dict(self.network.tensors()),
            losses=tuple(self.losses),
            record=tuple(self.record.rows),
            log_variance={} if self.log_variance is None else self.log_variance.state(),
            **self.stepper.state(),
        )

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """The network holds what the run hands out inside the block: an average, where one is kept."""
        return self.stepper.averaged()

    def run(self) -> bool:
        """Train up to the step ``end``.

        Returns:
            False when ``poll`` ended them early.

        Raises:
            Diverged: A loss or gradient was not finite; the weights are those before that step.
        """
        if self.step == 0:
            self.after(0)
        while self.step < self.end:
            started, where = time.perf_counter(), f"at step {self.step + 1}"
            self._wants_end = False
            loss = self.memory.attempt(self._accumulate, self.drop, where)
            norm = self.memory.once(self._update, where)
            self.step += 1
            self.losses.append(loss)
            self.record.end()
            lr = self.stepper.lr(self.step - 1, self.total)
            event = Progress(self.step, self.end, loss, lr, norm, time.perf_counter() - started)
            epoch = ended(self.losses, self.order.steps_per_epoch)
            if epoch is not None:
                self.sink(epoch)  # first, as an interrupt comes with the step
            self.sink(event)
            stop = self.monitor(event)
            self.after(self.step)
            if stop or self._wants_end:
                return False
        return True

    def drop(self) -> None:
        """Forget the gradients of a step that is not taken, and what was noted of it."""
        self.stepper.algorithm.zero_grad(set_to_none=True)
        self.record.begin()
        if self.log_variance is not None:
            self.log_variance.forget()

    def backward(self, items: list[int], slots: Sequence[int]) -> Iterator[float]:
        """Add the gradients of pictures in ``slots`` of this step; yields a batch's loss before its gradient."""
        for losses, minimized in self._losses(items, slots):
            yield float(losses.detach().sum() / self.plan.effective_batch)
            (minimized.sum() / self.plan.effective_batch).backward()
        self.network.draw(None)

    def _accumulate(self) -> float:
        """Gradients of one effective batch; returns its loss."""
        self.drop()
        items, total = self.order.indices(self.step), 0.0
        for slots in self.memory.cut(len(items)):
            self._wants_end = self.poll() or self._wants_end
            for value in self.backward([items[slot] for slot in slots], slots):
                total += self._finite("loss", value)
        return total

    def _losses(
        self, items: list[int], slots: Sequence[int]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The weighted loss of each sample ``[B]``, and what is minimized for it, batch by batch."""
        draws = Draws(self.plan.seed, self.step, slots, self.plan.effective_batch)
        for batch in self.data.batches(items, draws):
            self.network.draw(draws.of(batch.use))
            noised = self.objective.noised(self.denoiser, batch.latents, draws.of(batch.use))
            if batch.keeps_base:
                with torch.no_grad(), self.network.off():
                    base = self.denoiser(noised.x, noised.sigma, batch.of_base)
                noised = replace(noised, target=base.float())
            losses = self.objective.sample_loss(self.denoiser, noised, batch)
            if batch.teaches:
                self.record.note(noised.sigma, losses)
            minimized = losses
            if self.log_variance is not None:
                minimized = self.log_variance.minimized(losses, noised.sigma, learns=batch.teaches)
            yield batch.weight * losses, batch.weight * minimized

    def _update(self) -> float:
        """Set the learning rates, clip, step; returns the gradient's norm before clipping."""
        moving = self.stepper.begin(self.step, self.total)
        untouched = [name for name, p in moving.items() if p.grad is None]
        if untouched:
            raise RuntimeError(
                f"{len(untouched)} of {len(moving)} trained tensors got no gradient "
                f"({', '.join(untouched[:3])} ...): the model does not use these layers; leave them out of blocks."
            )
        limit = self.plan.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(list(moving.values()), limit))
        self._finite("gradient", norm)
        self.stepper.step(lambda: self.network.settle(moving))
        if self.log_variance is not None:
            self.log_variance.step()
        return norm

    def _finite(self, what: str, value: float) -> float:
        if not math.isfinite(value):
            raise Diverged(
                f"The {what} is {value} at step {self.step + 1}. Lower the learning rate, or train in fp32."
            )
        return value
