# SPDX-License-Identifier: Apache-2.0
"""Stage 1: the autoencoder, in TAESD format, on fresh drawings with every shape and texture.

The latent is kept near zero mean and unit deviation per channel by a penalty and the rest is baked into the last
encoder layer, so that SDXL's latent scale can be stored in `vae_scale`.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from . import drawing, legs
from . import vocabulary as words

LATENT_SCALE = 0.13025
NOISE = 0.08


def build(device: torch.device) -> nn.Module:
    """A freshly initialised TAESD of ComfyUI."""
    from comfy.taesd.taesd import TAESD

    model = TAESD(latent_channels=4)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.Conv2d.reset_parameters(module)
    for block in model.modules():
        if type(block).__name__ == "Block":
            nn.init.zeros_(block.conv[-1].bias)
            block.conv[-1].weight.data.mul_(0.5)
    return model.to(device, memory_format=torch.channels_last)


def pictures(count: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Fresh drawings ``[count, 3, 64, 64]`` with all shapes, textures and now and then no shape."""
    attributes = drawing.random_attributes(
        count, generator, len(words.SHAPES) + 1, len(words.TEXTURES)
    )
    batch = drawing.draw(attributes, generator)
    return batch.to(device).contiguous(memory_format=torch.channels_last)


def _loss(
    model: nn.Module, batch: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.autocast(batch.device.type, torch.bfloat16):
        latent = model.taesd_encoder(batch)
        decoded = model.taesd_decoder(latent + noise.to(latent.dtype) * NOISE)
    error = decoded.float() - batch
    latent = latent.float()
    mean, deviation = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
    spread = mean.square().mean() + (deviation - 1).square().mean()
    return error.square().mean() + 0.1 * error.abs().mean() + 0.01 * spread, error.square().mean()


def train(
    folder: Path,
    minutes: float,
    total: int,
    device: torch.device,
    batch_size: int = 16,
    seed: int = 0,
) -> None:
    """Run one leg of the autoencoder stage.

    Args:
        folder: Where checkpoints are kept.
        minutes: Time limit of the leg.
        total: Planned steps.
        device: Where to train.
        batch_size: Drawings per step.
        seed: Seed of all draws.
    """
    torch.manual_seed(seed)
    model = build(device)
    parameters = {k: p for k, p in model.named_parameters() if not k.startswith("vae_")}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    path, start = folder / "autoencoder.pt", 0
    if (state := legs.load_checkpoint(path)) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    mse = 1.0
    for step in legs.steps_of_leg(start, total, minutes, "autoencoder"):
        generator = legs.step_generator(seed, step, 1)
        batch = pictures(batch_size, generator, device)
        noise = torch.randn(batch_size, 4, 8, 8, generator=generator).to(device)
        legs.set_learning_rate(optimizer, legs.learning_rate(step, total, 1e-3, 50))
        loss, error = _loss(model, batch, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        start = step + 1
        mse = 0.95 * mse + 0.05 * error.item() if step > 20 else error.item()
        if start % 50 == 0:
            legs.log.info("autoencoder step %d: %.2f dB", start, -10 * math.log10(mse))
            legs.save_atomic(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": start},
                path,
            )
    legs.save_atomic(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": start}, path
    )
    legs.log.info("autoencoder: %.2f dB held out", measure(finish(folder)))


@torch.no_grad()
def finish(folder: Path, device: torch.device | None = None) -> nn.Module:
    """The trained autoencoder with latents normalised per channel and SDXL's latent scale stored.

    Args:
        folder: Where the stage keeps its checkpoint.
        device: Where to put it; the CPU when left out.

    Returns:
        A TAESD whose `encode` gives latents that SDXL's latent format scales to about unit deviation.
    """
    device = device or torch.device("cpu")
    model = build(device)
    state = legs.load_checkpoint(folder / "autoencoder.pt")
    if state is not None:
        model.load_state_dict(state["model"])
    else:
        from ...host.model.mini import VAE_PREFIX, read_asset

        legs.log.info("no autoencoder checkpoint in %s: taking the shipped one", folder)
        shipped = read_asset()
        kept = {name: value for name, value in shipped.items() if name.startswith(VAE_PREFIX)}
        model.load_state_dict(
            {name[len(VAE_PREFIX) :]: value.float() for name, value in kept.items()}
        )
    model.vae_scale.fill_(LATENT_SCALE)
    model.vae_shift.fill_(0.0)
    latent = model.taesd_encoder(
        pictures(256, torch.Generator().manual_seed(12345), device)
    ).float()
    legs.log.info(
        "latent mean %s std %s", latent.mean((0, 2, 3)).tolist(), latent.std((0, 2, 3)).tolist()
    )
    return model.requires_grad_(False)


@torch.no_grad()
def measure(model: nn.Module, count: int = 128, seed: int = 999) -> float:
    """PSNR in dB over held-out drawings, through `encode` and `decode`."""
    batch = pictures(count, torch.Generator().manual_seed(seed), next(model.parameters()).device)
    decoded = model.decode(model.encode(batch * 2 - 1)).add(1).div(2).clamp(0, 1)
    return -10 * math.log10((decoded - batch).square().mean().item())
