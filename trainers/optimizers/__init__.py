# SPDX-License-Identifier: Apache-2.0
"""Optimizers and learning-rate schedules, one file each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ...registry import Registry


class Algorithm(Protocol):
    """Settings that build an optimizer."""

    @property
    def lr(self) -> float:
        """The peak learning rate."""

    def build(self, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over ``parameters``."""


class Schedule(Protocol):
    """The learning rate's factor over the plan."""

    def factor(self, step: int, total: int) -> float:
        """The factor in [0, 1] for ``step`` (from 0) of ``total``."""


OPTIMIZERS: Registry[Algorithm] = Registry("optimizer")
SCHEDULES: Registry[Schedule] = Registry("schedule")

from . import schedules  # noqa: E402  (its members register in the family above)

OPTIMIZERS.discover(__path__, __name__)
SCHEDULES.discover(schedules.__path__, schedules.__name__)


@dataclass(frozen=True)
class Optimizer:
    """An algorithm and its schedule."""

    algorithm: Algorithm = OPTIMIZERS.get("adamw")()
    schedule: Schedule = SCHEDULES.get("constant")()

    def lr(self, step: int, total: int) -> float:
        """The learning rate of ``step`` (from 0); past ``total`` the last value holds."""
        return self.algorithm.lr * self.schedule.factor(min(step, total - 1), total)
