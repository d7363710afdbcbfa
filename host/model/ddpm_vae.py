# SPDX-License-Identifier: Apache-2.0
"""The VAE of a model whose latents are pictures: 0..1 becomes -1..1 and back, and gray is one channel."""

from __future__ import annotations

import functools
from typing import Any

import torch


def pixel_vae(channels: int) -> Any:
    """A VAE that changes nothing but the range, and the number of channels.

    Args:
        channels: Of the latents: 3, or 1, which is the mean of the picture's.
    """
    import comfy.sd

    # fp32: what a half-precision VAE rounds away is the picture itself here.
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    if channels == 1:
        vae.first_stage_model.__class__ = _gray()
        vae.latent_channels = 1
    return vae


@functools.lru_cache(maxsize=1)
def _gray() -> type:
    from comfy.pixel_space_convert import PixelspaceConversionVAE

    class GrayPixels(PixelspaceConversionVAE):  # type: ignore[misc]
        """One channel for three."""

        def encode(self, pixels: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            """``[B, 1, H, W]`` of ``[B, 3, H, W]``."""
            return pixels.mean(1, keepdim=True)

        def decode(self, samples: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            """``[B, 3, H, W]`` of ``[B, 1, H, W]``."""
            return samples.expand(-1, 3, *samples.shape[2:])

    return GrayPixels
