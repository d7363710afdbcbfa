# SPDX-License-Identifier: Apache-2.0
"""AdamW with its state in 8 bits (Dettmers et al. 2022; arXiv 2110.02861), where bitsandbytes is installed.

Tensors of less than 4096 numbers keep a 32-bit state, as the library has it.
"""

from dataclasses import dataclass
from typing import Any

import torch

from . import OPTIMIZERS, Groups, need, parameters_of
from .adamw import AdamW

DEVICES = ("cuda", "xpu")


@OPTIMIZERS.register("adamw-8bit")
@dataclass(frozen=True)
class AdamW8bit(AdamW):
    """Settings of bitsandbytes' AdamW8bit: those of AdamW."""

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
