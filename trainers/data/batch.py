# SPDX-License-Identifier: Apache-2.0
"""What one forward pass trains on."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class Batch:
    """Pictures of one shape with what they are conditioned on.

    Attributes:
        latents: Clean latents ``[B, ...]`` fp32 on the training device.
        cond: What the denoiser is conditioned on.
        weight: Factor of the loss of each, ``[B]`` on the device, or one for all.
        mask: How much each place counts, ``[B, 1, h, w]`` in 0..1 on the device; None counts all.
        keeps_base: Whether the base model's D is the target instead of the clean latents.
        plain: Whether no noise level counts more than another: the objective's weight is left out.
        use: Sets the draws of several batches in one step apart.
        base_cond: What the base model is conditioned on, where that is not ``cond``: text encoders are trained.
    """

    latents: torch.Tensor
    cond: Any
    weight: torch.Tensor | float = 1.0
    mask: torch.Tensor | None = None
    keeps_base: bool = False
    plain: bool = False
    use: str = ""
    base_cond: Any = None

    @property
    def of_base(self) -> Any:
        """What the base model is conditioned on."""
        return self.cond if self.base_cond is None else self.base_cond

    @property
    def teaches(self) -> bool:
        """Whether it is of the training pictures, and not of what keeps the model as it was."""
        return not (self.use or self.keeps_base)
