# SPDX-License-Identifier: Apache-2.0
"""Prodigy: Adam that finds its learning rate (Mishchenko & Defazio 2023, Algorithm 4; arXiv 2306.06101).

The library steps every group with the largest group's rate, also one whose rate is 0; so a group
that rests must have no gradient, which is the loop's rule for all optimizers.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...registry import check_limits, option
from . import OPTIMIZERS, Groups, need


@OPTIMIZERS.register("prodigy")
@dataclass(frozen=True)
class Prodigy:
    """Settings of prodigyopt's Prodigy; the defaults are those for diffusion models."""

    usual: ClassVar[tuple[float, float]] = (0.1, 2.0)
    one_lr: ClassVar[bool] = True
    running: ClassVar[tuple[str, ...]] = ("k", "d", "d_max", "d_numerator")
    schedules: ClassVar[tuple[str, ...]] = ("constant", "cosine", "linear", "polynomial")

    lr: float = option(1.0, "Factor of the rate that it finds; leave it at 1.", min=1e-9, max=10.0)
    beta1: float = option(0.9, "Decay of the gradient's mean.", min=0.0, max=0.9999)
    beta2: float = option(0.99, "Decay of the gradient's square.", min=0.0, max=0.99999)
    beta3: float = option(
        0.0, "Decay of the rate's estimate; 0 is the square root of beta2.", min=0.0, max=0.99999
    )
    weight_decay: float = option(
        0.01, "Pull towards zero, times the learning rate.", min=0.0, max=100.0
    )
    eps: float = option(1e-8, "Added to the denominator.", min=1e-12, max=1.0)
    d0: float = option(
        1e-6, "Where the estimate begins; 1e-5 or 1e-4 if it stays tiny.", min=1e-12, max=1.0
    )
    d_coef: float = option(
        1.0, "Factor of the estimate: 0.5 is careful, 2 is bold.", min=1e-3, max=100.0
    )
    growth_rate: float = option(
        0.0, "The estimate grows by at most this factor a step; 0 is no limit.", min=0.0, max=1e9
    )
    use_bias_correction: bool = option(True, "Adam's bias correction.")
    safeguard_warmup: bool = option(True, "Keep a warm-up from inflating the estimate.")

    def __post_init__(self) -> None:
        check_limits(self)
        if 0 < self.growth_rate < 1:
            raise ValueError(
                f"growth_rate is {self.growth_rate}; it must be 0 (no limit) or at least 1."
            )

    def available(self, device: torch.device) -> None:
        """Raise a ``ValueError`` without the library."""
        need("prodigyopt", "prodigy")

    def effective_lr(self, optimizer: torch.optim.Optimizer) -> float:
        """d times the rate of the groups that move."""
        rate = max(group["lr"] for group in optimizer.param_groups)
        return float(optimizer.param_groups[0]["d"] * rate)

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """``prodigyopt.Prodigy``."""
        self.available(torch.device("cpu"))
        import prodigyopt

        # The decay goes with the groups: as an argument it makes the library print.
        given: list[Any] = list(groups)
        if not given or not isinstance(given[0], dict):
            given = [{"params": given}]
        return prodigyopt.Prodigy(
            [{"weight_decay": self.weight_decay, **group} for group in given],
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            beta3=self.beta3 or None,
            eps=self.eps,
            d0=self.d0,
            d_coef=self.d_coef,
            growth_rate=self.growth_rate or math.inf,
            use_bias_correction=self.use_bias_correction,
            safeguard_warmup=self.safeguard_warmup,
        )
