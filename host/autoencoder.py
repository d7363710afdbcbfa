# SPDX-License-Identifier: Apache-2.0
"""Pictures to latents, by the VAE on the wire and the model's latent format.

The host's VAE runs in inference mode, as its nodes run it; what comes out of here are normal tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

CHUNK_PIXELS = 2**21  # at once: an autoencoder's activations are its memory


def check_family(vae: Any, model: Any) -> None:
    """Raise when the VAE's latents are not the MODEL's.

    Args:
        vae: a VAE.
        model: a ModelPatcher or BaseModel.

    Raises:
        ValueError: names both and what differs.
    """
    base = getattr(model, "model", model)
    wanted = base.latent_format
    pairs = [
        ("channels", getattr(vae, "latent_channels", None), wanted.latent_channels),
        ("dimensions", getattr(vae, "latent_dim", None), wanted.latent_dimensions),
    ]
    # Formats that do not state their compression may have any.
    stated = [c for c in type(wanted).__mro__[:-2] if "spacial_downscale_ratio" in vars(c)]
    if stated and hasattr(vae, "spacial_compression_encode"):
        ratio = vae.spacial_compression_encode()
        pairs.append(("pixels a side", ratio, wanted.spacial_downscale_ratio))
    for what, have, want in pairs:
        if have is not None and have != want:
            kind = type(getattr(vae, "first_stage_model", vae)).__name__
            raise ValueError(
                f"the VAE ({kind}) makes latents of {have} {what}, the MODEL "
                f"({type(base.model_config).__name__}) takes {want}: connect the VAE that belongs "
                "to this model"
            )


def encode(vae: Any, model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Encode pictures into latents in the model's units.

    Args:
        vae: a VAE.
        model: a ModelPatcher or BaseModel; its latent format scales the result.
        pixels: ``[B, h, w, 3]``, 0..1, sides divisible by the VAE's compression.

    Returns:
        fp32 latents on the CPU, ``[B, C, h/8, w/8]`` for most models.

    Raises:
        ValueError: the VAE is of another family.
    """
    check_family(vae, model)
    base = getattr(model, "model", model)
    count = max(1, CHUNK_PIXELS // max(1, pixels.shape[1] * pixels.shape[2]))
    if getattr(vae, "latent_dim", 2) == 3:
        count = 1  # such a VAE takes a batch for the frames of one video
    parts = []
    with torch.inference_mode(), _fixed_draws(vae):
        for chunk in pixels[..., :3].float().split(count):
            latent = vae.encode(chunk).float().cpu()
            parts.append(base.process_latent_in(latent))
    channels = base.latent_format.latent_channels
    if parts[0].shape[1] != channels:
        raise ValueError(
            f"the VAE made latents of {parts[0].shape[1]} channels, the MODEL "
            f"({type(base.model_config).__name__}) takes {channels}: connect the VAE that belongs "
            "to this model"
        )
    with torch.inference_mode(False):
        return torch.cat([p.clone() for p in parts])


@contextmanager
def _fixed_draws(vae: Any) -> Iterator[None]:
    """An autoencoder that samples draws the same numbers each time, and leaves the generators alone."""
    device = torch.device(getattr(vae, "device", None) or "cpu")
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(0)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield
