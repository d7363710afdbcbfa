# SPDX-License-Identifier: Apache-2.0
"""Training pictures of the UNet stage: fresh drawings, encoded in chunks and kept for a few uses.

Encoding costs nearly as much as a training step on a CPU, so each drawing is used about `REUSE` times, with a newly
worded caption every time. Nothing is stored on disk; a resumed run refills the pool from the step's seed.
"""

from __future__ import annotations

import dataclasses
import random

import torch
from torch import nn

from . import captions, drawing, legs, text

REUSE = 5
SHARES = (0.7, 0.15, 0.15)
DROPOUT = 0.1


@dataclasses.dataclass
class Pool:
    """Encoded drawings of one aspect ratio; all fields have the pool's length."""

    latents: torch.Tensor
    sizes: torch.Tensor
    named: list[dict[str, str]]
    cursor: int = 0


class LatentSource:
    """Batches of latents, token rows and SDXL size conditioning; a crew encodes at the same steps."""

    def __init__(
        self, autoencoder: nn.Module, tokens: text.WordTokens, batch: int, seed: int, rank: int = 0
    ) -> None:
        self.autoencoder, self.tokens, self.batch = autoencoder, tokens, batch
        self.seed, self.crew_seed = seed * 64 + rank, seed
        self.device = next(autoencoder.parameters()).device
        self.reuse = 1 if self.device.type == "cuda" else REUSE
        self.pools: list[Pool] = []

    @torch.no_grad()
    def _fresh(self, count: int, aspect: int, generator: torch.Generator) -> Pool:
        height, width = drawing.PICTURE_SIZES[aspect]
        attributes = drawing.random_attributes(count, generator)
        crops = torch.where(
            torch.rand(count, 1, generator=generator) < 0.3,
            torch.randint(0, 9, (count, 2), generator=generator),
            0,
        )
        scale = torch.tensor([1, 1, 1, 2, 4, 8, 16])[
            torch.randint(7, (count, 1), generator=generator)
        ]
        target = torch.tensor([[height, width]])
        sizes = torch.cat([target * scale + crops, crops, target.expand(count, 2)], 1).float()
        pictures = drawing.draw(attributes, generator, height, width, offset=-crops.float())
        pictures = pictures.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16):
            latents = self.autoencoder.taesd_encoder(pictures).float().contiguous()
        return Pool(
            latents,
            sizes.to(self.device),
            [captions.names(attributes, row) for row in range(count)],
        )

    def fill(self, step: int, chunks: int = 40) -> None:
        """Fill the pools; `step` picks the drawings."""
        for aspect, share in enumerate(SHARES):
            generator = legs.step_generator(self.seed, step, 8 + aspect)
            parts = [
                self._fresh(self.batch, aspect, generator)
                for _ in range(max(4, int(chunks * share)))
            ]
            named = [entry for part in parts for entry in part.named]
            latents = torch.cat([part.latents for part in parts])
            self.pools.append(Pool(latents, torch.cat([part.sizes for part in parts]), named))

    def _renew(self, pool: Pool, aspect: int, generator: torch.Generator) -> None:
        fresh = self._fresh(self.batch, aspect, generator)
        start, end = pool.cursor, pool.cursor + self.batch
        pool.latents[start:end], pool.sizes[start:end] = fresh.latents, fresh.sizes
        pool.named[start:end] = fresh.named
        pool.cursor = end % len(pool.named)

    def next(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The batch of one step.

        Args:
            step: Index of the step; it decides every draw.

        Returns:
            Latents ``[B, 4, h, w]``, CLIP-L rows ``[B, 77]``, CLIP-G rows ``[B, 77]`` and sizes ``[B, 6]``.
        """
        if not self.pools:
            self.fill(step)
        generator = legs.step_generator(self.seed, step, 2)
        together = random.Random(self.crew_seed * 1_000_003 + step)
        chooser = random.Random(self.seed * 1_000_003 + step)
        aspect = together.choices(range(3), SHARES)[0]
        pool = self.pools[aspect]
        if together.random() < 1 / self.reuse:
            self._renew(pool, aspect, generator)
        chosen = torch.randperm(len(pool.named), generator=generator)[: self.batch]
        rows = []
        for index in chosen.tolist():
            said = (
                "" if chooser.random() < DROPOUT else captions.caption(pool.named[index], chooser)
            )
            rows.append(self.tokens.rows(said, chooser))
        rows_l, rows_g = (
            torch.tensor([row[side] for row in rows], device=self.device) for side in (0, 1)
        )
        chosen = chosen.to(self.device)
        return pool.latents[chosen], rows_l, rows_g, pool.sizes[chosen]
