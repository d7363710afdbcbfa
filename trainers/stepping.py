# SPDX-License-Identifier: Apache-2.0
"""From gradients to new weights: an optimizer's settings at work on named parameters.

A group whose learning rate is 0 now, by its schedule or because its part has stopped, rests: its
parameters have no gradient when the algorithm steps, so neither momentum nor decay moves them.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from .ema import EMA
from .optimizer_form import check_kept, finite_number
from .optimizers import Optimizer
from .state import State, group_state, optimizer_state, restore_groups, restore_optimizer


class Stepper:
    """Steps parameters by groups, rests those that have stopped, and averages.

    Parameters, optimizer state and averages are fp32, whatever the model computes in.

    Args:
        settings: Algorithm, schedule and what differs between parts.
        parameters: The trained parameters by name.
    """

    def __init__(self, settings: Optimizer, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self.settings, self.parameters = settings, dict(parameters)
        self.algorithm = settings.algorithm.build(settings.groups(self.parameters))
        self.ema = EMA(self.parameters, settings.ema_decay) if settings.ema_decay else None
        self._running: tuple[str, ...] = getattr(settings.algorithm, "running", ())

    def begin(self, step: int, total: int) -> dict[str, torch.nn.Parameter]:
        """Set the learning rates of a step.

        Args:
            step: The step, from 0.
            total: Length of the plan.

        Returns:
            The parameters that this step moves, by name; all of them when it moves none.
        """
        factor, resting = self.settings.factor(step, total), set()
        for group in self.algorithm.param_groups:
            has_stopped = group["stop"] < 1 and step >= group["stop"] * total
            group["lr"] = 0.0 if has_stopped else group["peak"] * factor
            if group["lr"] == 0:
                resting |= {id(p) for p in group["params"]}
        moving = {name: p for name, p in self.parameters.items() if id(p) not in resting}
        return moving or self.parameters

    def step(self, settle: Callable[[], object] = lambda: None) -> None:
        """Move what ``begin`` said, by its gradients, and the average with it.

        Args:
            settle: Called between the two.
        """
        for group in self.algorithm.param_groups:
            if group["lr"] == 0:
                for parameter in group["params"]:
                    parameter.grad = None
        self.algorithm.step()
        settle()
        if self.ema is not None:
            self.ema.update()

    def lr(self, step: int, total: int) -> float:
        """The learning rate that was in effect at ``step``: the model's, or what the algorithm found."""
        effective = getattr(self.settings.algorithm, "effective_lr", None)
        rate = self.settings.lr(step, total)
        return float(effective(self.algorithm)) if effective else rate

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters hold the result inside the block: an average where there is one."""
        own = getattr(self.algorithm, "averaged", contextlib.nullcontext)
        with self.ema.applied() if self.ema is not None else own():
            yield

    def state(self) -> dict[str, Any]:
        """What a resumed run needs of this, as fields of a ``State``: copies on the CPU."""
        algorithm = self.settings.algorithm
        return {
            "optimizer": optimizer_state(self.algorithm, self.parameters),
            "groups": group_state(self.algorithm, self.parameters, self._running),
            "algorithm": getattr(algorithm, "name", ""),
            "ema": {} if self.ema is None else self.ema.state(),
            "ema_updates": 0 if self.ema is None else self.ema.updates,
        }

    def load(self, state: State) -> None:
        """Take over what ``state()`` gave; the parameters have their values already.

        Args:
            state: Where the run stands.

        Raises:
            ValueError: It belongs to another optimizer, other parameters or other groups of them, or is damaged.
        """
        name = getattr(self.settings.algorithm, "name", "")
        if state.algorithm and state.algorithm != name:
            raise ValueError(
                f"The state was trained with the optimizer {state.algorithm}, not {name}: choose {state.algorithm}, or "
                "start a new training on the MODEL that came out of the first."
            )
        check_kept(self.settings.algorithm, self.parameters, state.optimizer)
        for group in state.groups:
            for key in set(self._running) & set(group):
                finite_number(key, group[key])
        restore_optimizer(self.algorithm, self.parameters, state.optimizer)
        restore_groups(self.algorithm, self.parameters, state.groups, self._running)
        if self.ema is not None:
            self.ema.load(state.ema, state.ema_updates)
