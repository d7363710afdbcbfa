# SPDX-License-Identifier: Apache-2.0
"""Pictures to latents, by the VAE on the wire and the model's latent format.

The host's VAE runs in inference mode, as its nodes run it; what comes out of here are normal tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..model import latents

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
    wanted = latents.form_of(model)
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


@dataclass(frozen=True, eq=False)
class Posterior:
    """What an autoencoder makes of pictures, in the model's units, fp32 on the CPU.

    Attributes:
        mean: ``[B, C, h, w]``.
        spread: Standard deviation, of the same shape; None where the autoencoder gives a point.
    """

    mean: torch.Tensor
    spread: torch.Tensor | None = None


def posterior(vae: Any, model: Any, pixels: torch.Tensor) -> Posterior:
    """Encode pictures into the distribution of their latents, where the autoencoder has one (Kingma and Welling 2014).

    The host's `VAE.encode` runs with its regularizer handing mean and log variance through, so that its own casts,
    chunks and tiles count. The mean is what it gives otherwise: the host takes the mode.

    Args:
        vae: a VAE.
        model: a ModelPatcher or BaseModel; its latent format scales the result.
        pixels: ``[B, h, w, 3]``, 0..1, sides divisible by the VAE's compression.

    Raises:
        ValueError: the VAE is of another family.
    """
    if _regularizer(vae) is None:
        return Posterior(encode(vae, model, pixels))
    check_family(vae, model)
    means, spreads = [], []
    with torch.inference_mode(), _moments(vae):
        for both in _encoded(vae, pixels):
            mean, logvar = both.chunk(2, dim=1)
            std = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
            means.append(latents.process_in(model, mean))
            # Latent formats are affine: what they do to a difference has no offset.
            offset = latents.process_in(model, 0 * std)
            spreads.append(latents.process_in(model, std) - offset)
    with torch.inference_mode(False):
        return Posterior(*(torch.cat([p.clone() for p in parts]) for parts in (means, spreads)))


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
    with torch.inference_mode():
        parts = [latents.process_in(model, latent) for latent in _encoded(vae, pixels)]
    channels = latents.form_of(model).latent_channels
    if parts[0].shape[1] != channels:
        raise ValueError(
            f"the VAE made latents of {parts[0].shape[1]} channels, the MODEL "
            f"({type(base.model_config).__name__}) takes {channels}: connect the VAE that belongs "
            "to this model"
        )
    with torch.inference_mode(False):
        return torch.cat([p.clone() for p in parts])


def _encoded(vae: Any, pixels: torch.Tensor) -> Iterator[torch.Tensor]:
    """What the VAE makes of the pictures, some at a time, fp32 on the CPU."""
    count = max(1, CHUNK_PIXELS // max(1, pixels.shape[1] * pixels.shape[2]))
    if getattr(vae, "latent_dim", 2) == 3:
        count = 1  # such a VAE takes a batch for the frames of one video
    for chunk in pixels[..., :3].float().split(count):
        with _fixed_draws(vae):
            latent = vae.encode(chunk).float().cpu()
        yield latent


def _regularizer(vae: Any) -> torch.nn.Module | None:
    """The part that makes a latent of mean and log variance, where nothing is done to the latent after it."""
    from comfy.ldm.models.autoencoder import DiagonalGaussianRegularizer

    network = getattr(vae, "first_stage_model", None)
    part = getattr(network, "regularization", None)
    is_last = getattr(network, "bn", None) is None and getattr(vae, "format_encoded", None) is None
    return part if type(part) is DiagonalGaussianRegularizer and is_last else None


@contextmanager
def _moments(vae: Any) -> Iterator[None]:
    """The VAE gives mean and log variance in twice its channels, in tiles, too."""
    part, channels = _regularizer(vae), vae.latent_channels
    before = vars(part).get("forward")
    try:
        vars(part)["forward"] = lambda both: (both, None)
        vae.latent_channels = 2 * channels
        yield
    finally:
        vae.latent_channels = channels
        if before is None:
            del vars(part)["forward"]
        else:
            vars(part)["forward"] = before


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
