# SPDX-License-Identifier: Apache-2.0
"""Stage 3: the scorer, on drawings as they are, roughened, and as the autoencoder gives them back."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ...metrics.scorer import ASSET, Scorer, save_scorer
from . import drawing, legs, pretrain_autoencoder
from . import vocabulary as words

BATCH = 64
DECODED = 16


def labels() -> dict[str, list[str]]:
    """The labels of each head."""
    colours = list(words.COLOUR_NAMES)
    return {
        "shape": [*words.SHAPES, words.NO_SHAPE],
        "colour": colours,
        "background": colours,
        "texture": list(words.TEXTURES),
    }


def _blobs(
    pictures: torch.Tensor, attributes: drawing.Attributes, generator: torch.Generator
) -> torch.Tensor:
    """Give half of the pictures without a shape a formless blob of the colour."""
    count, _, height, width = pictures.shape
    coarse = torch.randn(count, 1, 4, 4, generator=generator)
    cover = F.interpolate(coarse, (height, width), mode="bicubic").sub(0.7).mul(12).clamp(0, 1)
    lucky = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    formless = (attributes.shape == drawing.NO_SHAPE_INDEX).view(-1, 1, 1, 1)
    table = torch.tensor(list(words.COLOURS.values()))
    colour = table[attributes.colour][:, :, None, None]
    return torch.where(lucky & formless, torch.lerp(pictures, colour, cover), pictures)


def fresh(
    count: int, generator: torch.Generator, aspect: int = 0
) -> tuple[torch.Tensor, drawing.Attributes]:
    """Clean drawings with every shape, texture and "no shape".

    Args:
        count: How many.
        generator: Source of randomness.
        aspect: Index into `drawing.PICTURE_SIZES`.

    Returns:
        Pictures ``[count, 3, H, W]`` and what they show.
    """
    attributes = drawing.random_attributes(
        count, generator, len(words.SHAPES) + 1, len(words.TEXTURES)
    )
    pictures = drawing.draw(attributes, generator, *drawing.PICTURE_SIZES[aspect])
    return _blobs(pictures, attributes, generator), attributes


def roughen(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur, shift the tones of and add noise to pictures ``[B, 3, H, W]``, each by its own amount."""
    count = pictures.shape[0]
    amount = torch.rand(count, 4, 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    softer = F.avg_pool2d(F.pad(blurred, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pictures = torch.lerp(pictures, torch.where(amount[:, 0] < 0.3, softer, blurred), amount[:, 1])
    gain = 1 + 0.12 * (2 * torch.rand(count, 3, 1, 1, generator=generator) - 1)
    shift = 0.05 * (2 * torch.rand(count, 3, 1, 1, generator=generator) - 1)
    noise = torch.randn(pictures.shape, generator=generator) * 0.06 * amount[:, 2].square()
    return (pictures * gain + shift + noise).clamp(0, 1)


class DecodedPool:
    """Drawings that went through the autoencoder, with more or less noise on the latents."""

    def __init__(
        self, autoencoder: nn.Module, generator: torch.Generator, rounds: int = 24
    ) -> None:
        self.autoencoder = autoencoder
        self.device = next(autoencoder.parameters()).device
        self.entries = [self._make(generator) for _ in range(rounds)]

    @torch.no_grad()
    def _make(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        pictures, attributes = fresh(DECODED, generator)
        level = 0.3 * torch.rand(DECODED, 1, 1, 1, generator=generator)
        noise = torch.randn(DECODED, 4, 8, 8, generator=generator) * level
        batch = pictures.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16):
            latent = self.autoencoder.taesd_encoder(batch)
            decoded = self.autoencoder.taesd_decoder(latent + noise.to(latent))
        return decoded.float().clamp(0, 1).cpu().contiguous(), targets(attributes)

    def next(
        self, chooser: random.Random, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures ``[16, 3, 64, 64]`` and their targets; now and then an entry is renewed."""
        place = chooser.randrange(len(self.entries))
        if chooser.random() < 0.15:
            self.entries[place] = self._make(generator)
        return self.entries[place]


def targets(attributes: drawing.Attributes) -> torch.Tensor:
    """Class indices ``[B, 4]``; the colour of no shape is -1."""
    colour = torch.where(attributes.shape == drawing.NO_SHAPE_INDEX, -1, attributes.colour)
    return torch.stack([attributes.shape, colour, attributes.background, attributes.texture], 1)


def _loss(model: Scorer, pictures: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    logits = model(pictures)
    parts = [
        F.cross_entropy(logits[kind], wanted[:, column], ignore_index=-1)
        for column, kind in enumerate(logits)
    ]
    return torch.stack(parts).sum()


def train(folder: Path, minutes: float, total: int, device: torch.device, seed: int = 0) -> None:
    """Run one leg of the scorer stage, and ship the scorer when the plan is done.

    Args:
        folder: Where checkpoints are kept.
        minutes: Time limit of the leg.
        total: Planned steps.
        device: Where to train.
        seed: Seed of all draws.
    """
    torch.manual_seed(seed)
    model = Scorer(labels()).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    path, start = folder / "scorer.pt", 0
    if (state := legs.load_checkpoint(path)) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    pool = DecodedPool(
        pretrain_autoencoder.finish(folder, device), legs.step_generator(seed, start, 6)
    )
    for step in legs.steps_of_leg(start, total, minutes, "scorer"):
        generator, chooser = (
            legs.step_generator(seed, step, 5),
            random.Random(seed * 1_000_003 + step),
        )
        aspect = chooser.choice((0, 0, 1, 2))
        pictures, attributes = fresh(BATCH, generator, aspect)
        loss = _loss(model, roughen(pictures, generator).to(device), targets(attributes).to(device))
        decoded, wanted = pool.next(chooser, generator)
        loss = loss + 0.4 * _loss(model, roughen(decoded, generator).to(device), wanted.to(device))
        legs.set_learning_rate(optimizer, legs.learning_rate(step, total, 2e-3, 50))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        start = step + 1
        if start % 100 == 0:
            legs.log.info("scorer step %d: loss %.4f", start, loss.item())
            legs.save_atomic(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": start},
                path,
            )
    legs.save_atomic(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": start}, path
    )
    save_scorer(model, ASSET)
    legs.log.info("scorer: %s right", measure(model.cpu()))


def measure(model: Scorer, count: int = 512, seed: int = 4321) -> dict[str, float]:
    """Share of right and certain answers per head on held-out clean drawings.

    Args:
        model: The scorer.
        count: How many drawings.
        seed: Seed of the drawings.

    Returns:
        Shares by head.
    """
    pictures, attributes = fresh(count, torch.Generator().manual_seed(seed))
    wanted, names = targets(attributes), labels()
    verdicts = model.judge(pictures.movedim(1, -1))
    shares = {}
    for column, kind in enumerate(names):
        asked = [
            (row, names[kind][index])
            for row, index in enumerate(wanted[:, column].tolist())
            if index >= 0
        ]
        verdict = verdicts[kind]
        right = [
            verdict.labels[row] == name and float(verdict.probabilities[row]) >= 0.5
            for row, name in asked
        ]
        shares[kind] = round(sum(right) / len(right), 4)
    return shares
