# SPDX-License-Identifier: Apache-2.0
"""Lion: the sign of a momentum (Chen et al. 2023, Algorithm 2; arXiv 2302.06675)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...registry import check_limits, option
from . import OPTIMIZERS, Groups


@OPTIMIZERS.register("lion")
@dataclass(frozen=True)
class Lion:
    """Settings of Lion: a rate 3 to 10 times smaller than AdamW's, a decay as much larger (sec. 5)."""

    usual: ClassVar[tuple[float, float]] = (1e-8, 0.003)

    lr: float = option(3e-5, "Peak learning rate.", min=0.0, max=10.0)
    beta1: float = option(0.9, "Share of the momentum in the update.", min=0.0, max=0.9999)
    beta2: float = option(0.99, "Decay of the momentum.", min=0.0, max=0.99999)
    weight_decay: float = option(
        0.03, "Pull towards zero, times the learning rate.", min=0.0, max=100.0
    )

    def __post_init__(self) -> None:
        check_limits(self)

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """Lion over ``groups``."""
        values = {"lr": self.lr, "betas": (self.beta1, self.beta2)}
        return _Lion(groups, {**values, "weight_decay": self.weight_decay})


class _Lion(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                m = state["exp_avg"]
                update = m.lerp(p.grad, 1 - beta1).sign_()
                p.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr)
                m.lerp_(p.grad, 1 - beta2)
        return loss
