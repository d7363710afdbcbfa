# SPDX-License-Identifier: Apache-2.0
"""Schedule-free AdamW (Defazio et al. 2024, Algorithm 1; arXiv 2405.15682).

    y = (1 - beta1) z + beta1 x                         where the gradient g is taken
    v = beta2 v + (1 - beta2) g^2
    z = z - gamma g / (sqrt(v) + eps) - gamma lambda y,    gamma = lr sqrt(1 - beta2^t)
    x = (1 - c) x + c z,                                c = gamma^2 / (sum of all gamma^2)

The parameter holds y while it trains; x, the average, is the result.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...registry import check_limits, option
from . import OPTIMIZERS, Groups


@OPTIMIZERS.register("schedule-free-adamw")
@dataclass(frozen=True)
class ScheduleFreeAdamW:
    """Settings of schedule-free AdamW: constant learning rate, a warm-up is welcome."""

    usual: ClassVar[tuple[float, float]] = (1e-7, 0.05)
    averages: ClassVar[bool] = True
    schedules: ClassVar[tuple[str, ...]] = ("constant",)

    lr: float = option(2.5e-4, "Peak learning rate.", min=0.0, max=10.0)
    beta1: float = option(
        0.9, "Share of the average where the gradient is taken.", min=0.0, max=0.9999
    )
    beta2: float = option(0.999, "Decay of the gradient's square.", min=0.0, max=0.99999)
    weight_decay: float = option(
        0.01, "Pull towards zero, times the learning rate.", min=0.0, max=100.0
    )
    eps: float = option(1e-8, "Added to the denominator.", min=1e-12, max=1.0)

    def __post_init__(self) -> None:
        check_limits(self)

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """Schedule-free AdamW over ``groups``."""
        values = {"lr": self.lr, "betas": (self.beta1, self.beta2), "eps": self.eps}
        return _ScheduleFree(groups, {**values, "weight_decay": self.weight_decay})


class _ScheduleFree(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, group)
        return loss

    def _step(self, y: torch.Tensor, g: torch.Tensor, group: dict[str, Any]) -> None:
        (beta1, beta2), state = group["betas"], self.state[y]
        if not state:
            state |= {"t": 0, "squares": 0.0, "v": torch.zeros_like(y)}
            state |= {"z": y.clone(), "x": y.clone()}
        x, z, v = state["x"], state["z"], state["v"]
        state["t"] += 1
        gamma = group["lr"] * math.sqrt(1 - beta2 ** state["t"])
        state["squares"] += gamma**2
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        z.sub_(y, alpha=gamma * group["weight_decay"])
        z.addcdiv_(g, v.sqrt().add_(group["eps"]), value=-gamma)
        x.lerp_(z, gamma**2 / state["squares"] if gamma else 0.0)
        y.copy_(z).lerp_(x, beta1)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters hold x inside the block."""
        held = [(p, p.data, s["x"]) for p, s in self.state.items() if "x" in s]
        try:
            for p, _, x in held:
                p.data = x
            yield
        finally:
            for p, y, _ in held:
                p.data = y
