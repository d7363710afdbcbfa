# SPDX-License-Identifier: Apache-2.0
"""Stage 2: the UNet and both text encoders together, eps prediction on SDXL's schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import latents, legs, pretrain_autoencoder, text

PEAK_RATE = 1e-3
GAMMA = 5.0
STRONGEST = 20.0
CHECKPOINT_EVERY = 400
ZERO_ENDINGS = (".out_layers.3", ".proj_out", "out.2")
UNTRAINED = (
    "clip.clip_l.transformer.text_projection",
    "clip.clip_l.transformer.text_model.final",
    "logit_scale",
)


class Trainee(nn.Module):
    """UNet and text encoders as one module: tokens, sizes and noisy latents to predicted noise."""

    def __init__(self, tokens: text.WordTokens, device: torch.device, seed: int) -> None:
        super().__init__()
        from ...host.model.mini import mini_config

        config = mini_config()
        config.set_inference_dtype(torch.float32, None)
        torch.manual_seed(seed)
        base = config.get_model({}, "", device="cpu")
        self.unet = base.diffusion_model
        self.text = text.TextEncoders(tokens, device, seed)
        text.initialise(self.unet)
        for name, module in self.unet.named_modules():
            if name.endswith(ZERO_ENDINGS):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
        self.register_buffer("sigmas", base.model_sampling.sigmas.clone().float(), persistent=False)
        self.embedder = base.embedder
        self.unet.requires_grad_(True).train()
        last = f"clip.clip_l.transformer.text_model.encoder.layers.{text.LAYERS - 1}."
        for name, parameter in self.text.named_parameters():
            if any(part in name for part in (*UNTRAINED, last)):
                parameter.requires_grad_(False)
        self.to(device)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name, in a fixed order."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def load_asset(self, state: dict[str, torch.Tensor]) -> None:
        """Take the weights of an exported checkpoint, to go on from it with a fresh optimizer.

        Args:
            state: Tensors by SDXL checkpoint name, as `host.model.mini.read_asset` gives them.
        """
        from ...host.model.mini import UNET_PREFIX, mini_config

        size = len(UNET_PREFIX)
        unet = {
            name[size:]: value.float()
            for name, value in state.items()
            if name.startswith(UNET_PREFIX)
        }
        self.unet.load_state_dict(unet)
        encoders = mini_config().process_clip_state_dict(
            {name: value for name, value in state.items() if name.startswith("conditioner.")}
        )
        self.text.clip.load_state_dict({k: v.float() for k, v in encoders.items()}, strict=False)
        for side, table in (("clip_l", self.text.table_l), ("clip_g", self.text.table_g)):
            whole = encoders[f"{side}.transformer.text_model.embeddings.token_embedding.weight"]
            table.weight.copy_(whole[self.text.tokens.used].float())

    def forward(
        self,
        noisy: torch.Tensor,
        index: torch.Tensor,
        rows_l: torch.Tensor,
        rows_g: torch.Tensor,
        sizes: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise.

        Args:
            noisy: Scaled network input ``[B, 4, h, w]``.
            index: Timesteps ``[B]``.
            rows_l: CLIP-L tokens ``[B, 77]``.
            rows_g: CLIP-G tokens ``[B, 77]``.
            sizes: Height, width, crops and targets ``[B, 6]``.

        Returns:
            The predicted noise ``[B, 4, h, w]``.
        """
        context, pooled = self.text(rows_l, rows_g)
        adm = torch.cat([pooled, self.embedder(sizes.flatten()).view(sizes.shape[0], -1)], 1)
        return self.unet(noisy, index.float(), context=context, y=adm, transformer_options={})


def balance(sigma: torch.Tensor) -> torch.Tensor:
    """Weight of the noise error by sigma ``[B]``: that of the v error, less at both ends.

    Unweighted, the noise error hardly sees the noisy steps that decide which shape and colours a picture gets.
    """
    variance = sigma.square()
    return torch.minimum(variance * GAMMA, variance + 1).clamp(max=STRONGEST)


def _loss(
    model: nn.Module, sigmas: torch.Tensor, batch: Any, generator: torch.Generator, fast: bool
) -> torch.Tensor:
    clean, rows_l, rows_g, sizes = batch
    count, device = clean.shape[0], clean.device
    strata = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    index = (strata * len(sigmas)).long().clamp(max=len(sigmas) - 1).to(device)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    sigma = sigmas[index].view(-1, 1, 1, 1)
    noisy = (clean + sigma * noise) / (sigma.square() + 1).sqrt()
    with torch.autocast(device.type, torch.bfloat16, enabled=fast):
        predicted = model(noisy, index, rows_l, rows_g, sizes)
    error = F.mse_loss(predicted.float(), noise, reduction="none").mean((1, 2, 3))
    weight = balance(sigma.view(-1))
    return (error * weight).mean() / weight.mean()


class Run:
    """Everything a leg needs and a checkpoint keeps."""

    def __init__(
        self, folder: Path, device: torch.device, seed: int, from_asset: bool = False
    ) -> None:
        self.path = folder / "unet.pt"
        self.tokens = text.WordTokens()
        self.model = Trainee(self.tokens, device, seed)
        if from_asset and not self.path.exists():
            from ...host.model.mini import read_asset

            self.model.load_asset(read_asset())
        self.parameters = self.model.trained()
        decayed = [value for value in self.parameters.values() if value.ndim > 1]
        others = [value for value in self.parameters.values() if value.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": 0.01},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.99), fused=True)
        self.average = legs.AveragedWeights(self.parameters)
        self.step = 0
        state = legs.load_checkpoint(self.path)
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average.load(
                {name: value.to(device) for name, value in state["average"].items()}, state["step"]
            )
            self.step = state["step"]

    def advance(self, loss: torch.Tensor, rate: float, crew: legs.Crew) -> None:
        """One optimizer step with the gradient averaged over the crew."""
        legs.set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        crew.average([value.grad for value in self.parameters.values() if value.grad is not None])
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self.average.update(self.parameters)
        self.step += 1

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state(),
            "step": self.step,
        }
        legs.save_atomic(state, self.path)


def train(
    folder: Path,
    minutes: float,
    total: int,
    device: torch.device,
    precision: str = "fp32",
    compiled: bool = False,
    seed: int = 0,
    batch_size: int = 48,
    crew: legs.Crew | None = None,
    from_asset: bool = False,
) -> None:
    """Run one leg of the UNet stage.

    A file named `finish` in the folder, holding a number of steps, replaces the planned end: the rate then decays to
    its floor at that step.

    Args:
        folder: Where checkpoints are kept.
        minutes: Time limit of the leg.
        total: Planned steps; the learning rate's cosine ends there.
        device: Where to train.
        precision: `fp32` or `bf16` (autocast).
        compiled: Use `torch.compile`.
        seed: Seed of all draws.
        batch_size: Drawings per step, over all workers.
        crew: Worker processes that share each step; this process alone when left out.
        from_asset: Without a checkpoint, start from the shipped weights instead of from nothing.
    """
    crew = crew or legs.Crew()
    run = Run(folder, device, seed, from_asset)
    model = torch.compile(run.model) if compiled else run.model
    autoencoder = pretrain_autoencoder.finish(folder, device)
    source = latents.LatentSource(autoencoder, run.tokens, batch_size // crew.size, seed, crew.rank)
    fast, mean, rate, end = precision == "bf16", None, None, total
    for step in legs.steps_of_leg(run.step, total, minutes, "unet", crew):
        if step % 20 == 0 or rate is None:
            end = legs.planned_end(folder, total)
        rate = legs.learning_rate(step, end, PEAK_RATE)
        generator = legs.step_generator(source.seed, step, 3)
        loss = _loss(model, run.model.sigmas, source.next(step), generator, fast)
        run.advance(loss, rate, crew)
        value = loss.item()
        mean = value if mean is None else 0.99 * mean + 0.01 * value
        if run.step % 100 == 0 and crew.rank == 0:
            legs.log.info("unet step %d: loss %.4f rate %.2e", run.step, mean, rate)
        if run.step % CHECKPOINT_EVERY == 0 and crew.rank == 0:
            run.save()
        if run.step >= end:
            break
    if crew.rank == 0:
        run.save()
