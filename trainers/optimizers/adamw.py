# SPDX-License-Identifier: Apache-2.0
"""AdamW: decoupled weight decay (Loshchilov & Hutter 2019, Algorithm 2; arXiv 1711.05101)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...registry import check_limits, option
from . import OPTIMIZERS, Groups, parameters_of

FUSED = ("cpu", "cuda", "mps", "xpu")


@OPTIMIZERS.register("adamw")
@dataclass(frozen=True)
class AdamW:
    """Settings of torch's own AdamW."""

    usual: ClassVar[tuple[float, float]] = (1e-7, 0.02)
    lr: float = option(1e-4, "Peak learning rate.", min=0.0, max=10.0)
    beta1: float = option(0.9, "Decay of the gradient's mean.", min=0.0, max=0.9999)
    beta2: float = option(0.999, "Decay of the gradient's square.", min=0.0, max=0.99999)
    weight_decay: float = option(
        0.01, "Pull towards zero, times the learning rate.", min=0.0, max=100.0
    )
    eps: float = option(1e-8, "Added to the denominator.", min=1e-12, max=1.0)

    def __post_init__(self) -> None:
        check_limits(self)

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """``torch.optim.AdamW``, fused where the device has it."""
        fused = all(p.device.type in FUSED for p in parameters_of(groups)) or None
        return torch.optim.AdamW(
            groups,
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=fused,
        )
