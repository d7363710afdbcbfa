# SPDX-License-Identifier: Apache-2.0
"""Pyramid (multi-resolution) noise: noise of ever coarser grids is added, then all is scaled to unit variance.

Whitaker 2023, as kohya's multires_noise: grid i is smaller by r^i with r ~ U(2, 4), and counts discount^i. kohya draws
r once a batch and divides by the standard deviation of the whole batch; here both are each sample's own, so that the
noise of a picture does not depend on which others are in its batch.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from ....registry import check_limits, option
from ...random import Draws
from .. import NOISINGS


@NOISINGS.register("pyramid")
@dataclass(frozen=True)
class Pyramid:
    """Large shapes and brightness are noised, too."""

    discount: float = option(0.4, "How much each coarser grid counts.", min=0.0, max=1.0)
    iterations: int = option(6, "How many grids at most.", min=1, max=20)

    def __post_init__(self) -> None:
        check_limits(self)

    def __call__(self, clean: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Noise of unit variance for each sample."""
        if clean.ndim < 4:
            raise ValueError(
                f"pyramid noise needs latents with height and width, and these are {list(clean.shape)}: take gaussian."
            )
        rows = [self._sample(clean.shape[1:], replace(draws, slots=[slot])) for slot in draws.slots]
        return torch.stack(rows).to(clean.device)

    def _sample(self, shape: torch.Size, draws: Draws) -> torch.Tensor:
        *lead, height, width = shape
        noise = draws.normal(shape)[0]
        for i in range(self.iterations):
            scale = (2 + 2 * float(draws.uniform(f"pyramid scale {i}"))) ** i
            small = max(1, int(height / scale)), max(1, int(width / scale))
            grid = draws.normal((*lead, *small), f"pyramid {i}").reshape(1, -1, *small)
            grid = F.interpolate(grid, (height, width), mode="bilinear").view(shape)
            noise = noise + grid * self.discount**i
            if 1 in small:
                break
        return noise / noise.std()
