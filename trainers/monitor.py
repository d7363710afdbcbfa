# SPDX-License-Identifier: Apache-2.0
"""The health of a run: what is looked at between steps, when to end it, and the best state so far.

Nothing here draws from the run's generators or writes to its weights: a watched run trains what an unwatched one
does. Only ``readings`` may put other weights in for a while.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..adapters.change import Change
from .divergence import Divergence
from .drift import Drift
from .events import Progress, Sink, Validated, Warned
from .plan import Plan
from .state import Best, State
from .validation import Validator

ZERO_STEPS = 10  # without any gradient until a run is ended
MARGIN = 2.0  # what the median training loss may rise by chance: see `Monitor.better`


class NothingLearned(RuntimeError):
    """All gradients are exactly 0, step after step."""


class Monitor:
    """Looks after one run; the loop calls it after each step.

    Args:
        tensors: Copies of the trained weights as a file names them.
        plan: How often to look, and when to end.
        sink: Hears of validations and warnings.
        validator: Measures the held-out pictures, if there are any.
        change: Measures |dW| / |W|.

    Attributes:
        readings: Contexts under which the validation is made, by the name of the weights they put in. What is
            delivered comes last: its losses decide which state is the best.
        rows: Step and validation loss of what is delivered, oldest first.
        best: The best weights; None before the first look.
        looked: The step after which that was last judged; -1 before the first look.
        last: The change at the last look that measured it.
        stopped: Why the run was ended early; empty when it was not.
    """

    def __init__(
        self,
        tensors: Callable[[], Mapping[str, torch.Tensor]],
        plan: Plan,
        sink: Sink = lambda event: None,
        validator: Validator | None = None,
        change: Callable[[], Change] = lambda: Change({}),
    ) -> None:
        self._tensors, self._plan, self._sink = tensors, plan, sink
        self._validator, self._change = validator, change
        self.readings: dict[str, Callable[[], AbstractContextManager[object]]] = {
            "raw": nullcontext
        }
        self.rows: list[tuple[int, float]] = []
        self.best: Best | None = None
        self.last = Change({})
        self.stopped = ""
        self._divergence = Divergence(plan.stop_when_diverging)
        self._drift = Drift()
        self._without_gradient = 0
        self._forgiven = 0  # rows that patience does not count
        self.looked = -1

    @property
    def measure(self) -> str:
        """What the best state is chosen by."""
        return "median loss" if self._validator is None else "validation loss"

    def begin(self, state: State | None = None, *, is_same_run: bool = False) -> None:
        """Look at the model before the first step.

        Args:
            state: What the run goes on from.
            is_same_run: Whether it is this very run that was cut off there: then nothing is looked at or forgiven that
                the whole run would not have.
        """
        step = 0 if state is None else state.step
        if state is not None:
            self.rows, self.best, self.looked = list(state.validation), state.best, state.looked
            for loss in state.losses:
                self._divergence.see(loss)
        if is_same_run:
            return
        self._divergence.forgive()
        if self._is_out_of_patience():  # who goes on all the same has patience anew
            self._forgiven = len(self.rows)
        if self._validator is not None and (not self.rows or self.rows[-1][0] != step):
            self._look(step)

    def __call__(self, event: Progress) -> bool:
        """Take one step's figures.

        Args:
            event: The step.

        Returns:
            True to end the run; ``stopped`` says why.

        Raises:
            NothingLearned: No gradient for ``ZERO_STEPS`` steps on end.
        """
        self._check_gradient(event)
        text = self._drift.see(event.s_per_step)
        if text:
            self._sink(Warned(text))
        is_diverging = self._divergence.see(event.loss)
        is_last = event.step >= event.total
        if is_last or event.step % self._plan.validate_every == 0:
            self._look(event.step)
        if is_last:
            return False
        if is_diverging:
            now, best = self._divergence.level, self._divergence.best
            self.stopped = (
                f"The training diverges: up to step {event.step} the median loss is {now:.4g}, its best was "
                f"{best:.4g}. Lower the learning rate; stop_when_diverging 0 trains on."
            )
        elif event.step == self.looked and self._is_out_of_patience():
            self.stopped = (
                f"No better validation loss for {self._plan.patience} validations: ended at step {event.step}. "
                "patience 0 trains on."
            )
        if self.stopped:
            self._sink(Warned(self.stopped))
        return bool(self.stopped)

    def state(self) -> dict[str, Any]:
        """What a run that goes on needs of this, as fields of a ``State``."""
        return {"validation": tuple(self.rows), "best": self.best, "looked": self.looked}

    def slower(self) -> None:
        """Steps take longer from here on, for a reason that is known: no warning of that."""
        self._drift = Drift()

    def finish(self, step: int) -> None:
        """Look at what the run ends with after ``step`` steps, if that was not looked at yet."""
        if step != self.looked:
            self._look(step)
        if self._validator is None:
            self.last = self._change()

    def better(self) -> Best | None:
        """The best state, when it is better than the last one that was looked at.

        Without a validation the median training loss decides. It goes up and down with the noise levels drawn, so
        the last state counts as worse only when its loss is ``MARGIN`` times the best one.
        """
        best = self.best
        if best is None or best.step == self.looked:
            return None
        if self._validator is None:
            return best if self._divergence.level > MARGIN * best.loss else None
        loss = self.rows[-1][1]
        return None if math.isfinite(loss) and loss <= best.loss else best

    def worth_keeping(self, step: int, is_diverged: bool) -> Best | None:
        """The best state, when a run ends badly after ``step`` steps and would otherwise lose it."""
        best = self.best if is_diverged else self.better()
        return None if best is None or best.step == step else best

    def _check_gradient(self, event: Progress) -> None:
        self._without_gradient = self._without_gradient + 1 if event.grad_norm == 0 else 0
        if self._without_gradient >= ZERO_STEPS:
            raise NothingLearned(
                f"The gradient was exactly 0 for {ZERO_STEPS} steps up to step {event.step}: nothing is learned. Check "
                "that blocks names layers that the model uses, that masks are not empty, and that the weight is not 0 "
                "at the noise levels that are drawn."
            )

    @property
    def _delivered(self) -> str:
        return list(self.readings)[-1]

    def _look(self, step: int) -> None:
        """Measure; keep the weights where they are better than ever. Untrained ones never are the best."""
        self.looked = step
        if self._validator is None:
            with self.readings[self._delivered]():
                self._keep(step, self._divergence.level)
            return
        for name, put_in in self.readings.items():
            with put_in():
                per_sigma = self._validator()
                loss = sum(value for _, value in per_sigma) / len(per_sigma)
                change: dict[str, float] = {}
                if name == self._delivered:
                    self.last = self._change()
                    change = dict(self.last.blocks)
                    self.rows.append((step, loss))
                    if step > 0:
                        self._keep(step, loss)
            self._sink(Validated(step, loss, per_sigma, change, name))

    def _keep(self, step: int, loss: float) -> None:
        if not math.isfinite(loss) or (self.best is not None and loss >= self.best.loss):
            return
        tensors = self._tensors()
        if all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            self.best = Best(step, loss, tensors)

    def _is_out_of_patience(self) -> bool:
        """Whether too many looks on end were no better than the best."""
        if self._validator is None or self._plan.patience == 0:
            return False
        losses = [loss if math.isfinite(loss) else math.inf for step, loss in self.rows if step > 0]
        if not losses:
            return False
        since = min(len(losses) - 1 - losses.index(min(losses)), len(self.rows) - self._forgiven)
        return since >= self._plan.patience
