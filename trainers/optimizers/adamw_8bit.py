# SPDX-License-Identifier: Apache-2.0
"""AdamW with its state in 8 bits (Dettmers et al. 2022; arXiv 2110.02861), where bitsandbytes is installed.

Tensors of less than 4096 numbers keep a 32-bit state, as the library has it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...registry import check_limits, option
from . import OPTIMIZERS, Groups, need, parameters_of

DEVICES = ("cuda", "xpu")


@OPTIMIZERS.register("adamw-8bit")
@dataclass(frozen=True)
class AdamW8bit:
    """Settings of bitsandbytes' AdamW8bit."""

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

    def available(self, device: torch.device) -> None:
        """Raise a ``ValueError`` without a GPU or the library."""
        if device.type not in DEVICES:
            raise ValueError(
                f"The optimizer adamw-8bit steps on a GPU ({', '.join(DEVICES)}) only, and this model trains on "
                f"{device.type}: choose adamw, or adafactor, which needs little memory everywhere."
            )
        need("bitsandbytes", "adamw-8bit")

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """``bitsandbytes.optim.AdamW8bit``."""
        for parameter in parameters_of(groups):
            self.available(parameter.device)
        from bitsandbytes.optim import AdamW8bit as Library

        values: dict[str, Any] = {"betas": (self.beta1, self.beta2), "eps": self.eps}
        made: torch.optim.Optimizer = Library(
            groups, lr=self.lr, weight_decay=self.weight_decay, **values
        )
        return made
