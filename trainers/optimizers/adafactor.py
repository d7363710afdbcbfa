# SPDX-License-Identifier: Apache-2.0
"""Adafactor: rows and columns instead of every square (Shazeer & Stern 2018, Algorithms 4 and 5; arXiv 1804.04235).

With a learning rate of its own: no relative step and no scaling by the parameter's size, since a
LoRA's up matrices start at zero. torch.optim.Adafactor always scales, so the library is transformers.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...registry import check_limits, option
from . import OPTIMIZERS, Groups


@OPTIMIZERS.register("adafactor")
@dataclass(frozen=True)
class Adafactor:
    """Settings of transformers' Adafactor."""

    usual: ClassVar[tuple[float, float]] = (1e-7, 0.02)

    lr: float = option(1e-4, "Peak learning rate.", min=0.0, max=10.0)
    beta1: float = option(
        0.0, "Decay of the update's mean; 0 keeps none, which saves memory.", min=0.0, max=0.9999
    )
    weight_decay: float = option(
        0.01, "Pull towards zero, times the learning rate.", min=0.0, max=100.0
    )
    decay_rate: float = option(
        -0.8, "The mean of squares decays by 1 - step ^ decay_rate.", min=-1.0, max=-0.01
    )
    clip_threshold: float = option(
        1.0, "Largest root mean square of an update, in learning rates.", min=1e-3, max=1e3
    )
    eps: float = option(1e-30, "Added to the squares.", min=1e-38, max=1.0)
    scale_parameter: bool = option(
        False, "Multiply the rate by the parameter's own size (at least 0.001)."
    )

    def __post_init__(self) -> None:
        check_limits(self)

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """``transformers.optimization.Adafactor`` with a given learning rate."""
        from transformers.optimization import Adafactor as Library

        return Library(
            groups,
            lr=self.lr,
            eps=(self.eps, 1e-3),
            clip_threshold=self.clip_threshold,
            decay_rate=self.decay_rate,
            beta1=self.beta1 or None,
            weight_decay=self.weight_decay,
            scale_parameter=self.scale_parameter,
            relative_step=False,
            warmup_init=False,
        )
