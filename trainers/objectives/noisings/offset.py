# SPDX-License-Identifier: Apache-2.0
"""Offset noise: c N(0, 1) on a whole channel, so that brightness is learned, too (Guttenberg 2023).

As kohya's noise_offset: c may be drawn from U(0, c), and may grow with the mean of the latent's channel (adaptive).
The variance of a pixel becomes 1 + c^2. The draw of c is each sample's own and not the batch's.
"""

from dataclasses import dataclass

import torch

from ....registry import check_limits, option
from ...random import Draws
from .. import NOISINGS


@NOISINGS.register("offset")
@dataclass(frozen=True)
class Offset:
    """Lets an eps model learn very dark and very bright pictures."""

    strength: float = option(0.1, "Spread of what is added to a channel.", min=0.0, max=10.0)
    random: bool = option(False, "Draw the strength between 0 and its value.")
    adaptive: float = option(
        0.0,
        "How much of the mean of the latent's channel is added to the strength.",
        min=-10,
        max=10,
    )

    def __post_init__(self) -> None:
        check_limits(self)

    def __call__(self, clean: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Normal noise and an offset for each channel."""
        noise = draws.normal(clean.shape[1:]).to(clean.device)
        channel = (clean.shape[1],) + (1,) * (clean.ndim - 2)
        offset = draws.normal(channel, "noise offset").to(clean.device)
        strength = torch.full((len(clean),), self.strength, device=clean.device)
        if self.random:
            strength = strength * draws.uniform("noise offset strength").to(strength)
        strength = strength.view(-1, *(1,) * (clean.ndim - 1))
        if self.adaptive:
            mean = clean.flatten(2).mean(2).abs().view(offset.shape)
            strength = (strength + self.adaptive * mean).clamp(min=0)
        return noise + strength * offset
