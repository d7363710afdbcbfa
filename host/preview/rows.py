# SPDX-License-Identifier: Apache-2.0
"""What the model does with training pictures, as a sheet: as the VAE has them, noised, denoised, and the samples.

Two lines a picture, with sigma from left to right: x, and below it D(x; sigma) with the picture's own caption. Where D
shows the picture at a high sigma, the model knows it by heart. x is shown at the variance of the clean latent,
x / sqrt(a^2 + b^2) for x = a y + b n, which is what a variance-preserving model would see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ...trainers.data.batch import Batch
from ...trainers.denoiser import Denoiser
from ...trainers.objectives import NOISE
from ...trainers.random import Draws
from ..drawing.plots import INK, MUTED, PAPER, make_font, write
from .sampled import decoded, untouched

PICTURES = 4
LEVELS = 6
CELL_PX = (96, 256)  # the least and the most of a cell's longer side
GAP_PX = 4


class Data(Protocol):
    """The training pictures."""

    buckets: list[Any]

    def batches(self, items: Sequence[int], draws: Draws) -> Any:
        """What the slots train on: the pictures come first."""


@dataclass(frozen=True, eq=False)
class Rows:
    """One picture's cells: ``clean`` ``[h, w, 3]``, ``noised`` and ``denoised`` ``[LEVELS, h, w, 3]``, all 0..1."""

    clean: torch.Tensor
    noised: torch.Tensor
    denoised: torch.Tensor


def levels(denoiser: Denoiser) -> torch.Tensor:
    """Noise levels ``[LEVELS]`` at even quantiles of the model's table, ascending."""
    u = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    return denoiser.nearest(NOISE.get("model")().quantile(u, denoiser)).float().cpu()


def rows(trainee: Any, data: Data, vae: Any, seed: int) -> list[Rows]:
    """Noise, denoise and decode the first pictures; the draws are keyed by seed, picture and level.

    Args:
        trainee: Has the loaded training ``patcher``, its ``model`` and its ``denoiser``.
        data: The training pictures.
        vae: The VAE on the wire.
        seed: Seed of the run.
    """
    with torch.inference_mode(False), torch.no_grad(), untouched(trainee):
        # All of the model's work comes first: decoding may push it off the device.
        latents = [_latents(trainee, data, i, seed) for i in range(len(data.buckets[:PICTURES]))]
        made = []
        for stack in latents:
            cells = [decoded(vae, trainee.model.process_latent_out(one[None])) for one in stack]
            pixels = torch.cat(cells)
            made.append(Rows(pixels[0], pixels[1 : LEVELS + 1], pixels[LEVELS + 1 :]))
        return made


def _latents(trainee: Any, data: Data, index: int, seed: int) -> torch.Tensor:
    """Clean, noised and denoised latents of a picture, ``[1 + 2 LEVELS, C, h, w]`` fp32 on the CPU."""
    denoiser = trainee.denoiser
    draws = Draws(seed, 0, [index], len(data.buckets), "rows ")
    batch: Batch = next(iter(data.batches([index], draws)))
    clean, noised, denoised = batch.latents, [], []
    for level, value in enumerate(levels(denoiser)):
        noise = Draws(seed, level, [index], draws.batch, "rows ").normal(clean.shape[1:])
        sigma, noise = value.expand(1).to(clean.device), noise.to(clean.device)
        x = denoiser.add_noise(sigma, noise, clean)
        zero, one = torch.zeros_like(clean), torch.ones_like(clean)
        signal, spread = denoiser.add_noise(sigma, zero, one), denoiser.add_noise(sigma, one, zero)
        noised.append(x / (signal.square() + spread.square()).sqrt().clamp(min=1e-6))
        denoised.append(denoiser(x, sigma, batch.cond))
    return torch.cat([clean, *noised, *denoised]).float().cpu()


def sheet(made: Sequence[Rows], sigmas: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """Draw the sheet.

    Args:
        made: What ``rows`` gave.
        sigmas: The noise levels of the columns ``[LEVELS]``.
        samples: IMAGE ``[N, h, w, 3]`` in 0..1.

    Returns:
        IMAGE ``[1, H, W, 3]``, float32 in 0..1.
    """
    import numpy as np

    columns = LEVELS + 1
    cell = _cell([*(row.clean for row in made), samples[0]])
    first_sample = 2 * len(made)
    paper = _Paper(cell, columns, first_sample, -(-len(samples) // columns))
    paper.head(["input", *(f"sigma {value:.2g}" for value in sigmas.tolist())])
    for index, row in enumerate(made):
        paper.line(2 * index, "noised", [row.clean, *row.noised])
        paper.line(2 * index + 1, "denoised", [None, *row.denoised])
    for line, start in enumerate(range(0, len(samples), columns), first_sample):
        label = "" if start else "samples"
        paper.line(line, label, list(samples[start : start + columns]))
    pixels = np.asarray(paper.picture, dtype=np.float32) / 255.0
    with torch.inference_mode(False):
        return torch.from_numpy(pixels.copy())[None]


class _Paper:
    """Cells in lines and columns, with a head, labels on the left and a space before the last lines."""

    def __init__(self, cell: tuple[int, int], columns: int, upper: int, lower: int) -> None:
        from PIL import Image, ImageDraw

        self._cell, self._upper = cell, upper
        self._letters, self._head = make_font(max(11, cell[0] // 9)), max(18, cell[0] // 5)
        self._margin = int(self._letters.getlength("denoised")) + 4 * GAP_PX
        size = (self._x(columns), self._y(upper + lower) + GAP_PX)
        self.picture = Image.new("RGB", size, PAPER)
        self._draw = ImageDraw.Draw(self.picture)

    def _x(self, column: int) -> int:
        return self._margin + column * (self._cell[0] + GAP_PX)

    def _y(self, line: int) -> int:
        space = self._head if line >= self._upper else 0
        return self._head + space + line * (self._cell[1] + GAP_PX)

    def head(self, texts: Sequence[str]) -> None:
        for column, text in enumerate(texts):
            at = (self._x(column) + self._cell[0] // 2, self._head // 2)
            write(self._draw, at, text, MUTED, self._letters, "mm")

    def line(self, line: int, label: str, images: Sequence[torch.Tensor | None]) -> None:
        at = (self._margin - 2 * GAP_PX, self._y(line) + self._cell[1] // 2)
        write(self._draw, at, label, INK, self._letters, "rm")
        for column, image in enumerate(images):
            if image is not None:
                fitted = _fitted(image, self._cell)
                left = (self._cell[0] - fitted.width) // 2
                above = (self._cell[1] - fitted.height) // 2
                self.picture.paste(fitted, (self._x(column) + left, self._y(line) + above))


def _cell(images: Sequence[torch.Tensor]) -> tuple[int, int]:
    """Width and height of a cell: the largest picture's, within ``CELL_PX``."""
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    longest = max(width, height)
    scale = min(max(longest, CELL_PX[0]), CELL_PX[1]) / longest
    return max(1, round(width * scale)), max(1, round(height * scale))


def _fitted(image: torch.Tensor, cell: tuple[int, int]) -> Any:
    """The picture as large as it can be in a cell, as a PIL image."""
    from PIL import Image

    pixels = (image.detach().cpu().float().clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()
    height, width = pixels.shape[:2]
    scale = min(cell[0] / width, cell[1] / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return Image.fromarray(pixels).resize(size, how)
