# SPDX-License-Identifier: Apache-2.0
"""The dataset as the loop reads it: latents and model inputs of every picture, encoded once, in memory."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..trainers.data import Dataset, random_crop, size_for
from ..trainers.data.batch import Batch
from ..trainers.random import Draws
from . import autoencoder
from .conditioning import Conditioner, Encoded, ItemCond

KEPT_INPUTS = 128  # each holds a text encoding: 0.6 MB for SDXL, 8 MB for Flux


@dataclass(frozen=True, eq=False)
class Picture:
    """An encoded picture: latents ``[K, C, h, w]`` fp32 on the CPU of its K crops, and sizes in pixels."""

    latents: torch.Tensor
    size: tuple[int, int]
    original: tuple[int, int]
    crops: tuple[tuple[int, int], ...]


def encode_pictures(
    dataset: Dataset, vae: Any, model: Any, poll: Callable[[], None] = lambda: None
) -> tuple[Picture, ...]:
    """Decode, fit to buckets and encode every picture of a dataset, each of its crops.

    Args:
        dataset: What to encode.
        vae: The VAE on the wire.
        model: The MODEL on the wire, whose latent format counts.
        poll: Called before each picture; may raise to interrupt.

    Raises:
        ImageError: A file cannot be read.
        ValueError: The VAE is of another family.
    """
    pictures = []
    for index, item in enumerate(dataset.items):
        poll()
        pixels, size = item.read(), size_for(*item.measure(), dataset.resolution)
        fitted = [random_crop(pixels, size, index, crop) for crop in range(dataset.crops)]
        latents = [autoencoder.encode(vae, model, one.pixels[None]) for one in fitted]
        crops = tuple(one.crop for one in fitted)
        with torch.inference_mode(False):
            pictures.append(Picture(torch.cat(latents).clone(), size, fitted[0].original, crops))
    return tuple(pictures)


class TrainingData:
    """Implements the loop's ``Data``.

    Args:
        pictures: The encoded pictures, with the caption of each.
        priors: Pictures of the base model, with the prompt of each.
        texts: Encoded texts by text.
        conditioner: Makes model inputs.
        device: Where latents go.
        preserve: Weight of staying like the base model on the priors.
    """

    def __init__(
        self,
        pictures: Sequence[tuple[Picture, str]],
        priors: Sequence[tuple[Picture, str]],
        texts: dict[str, Encoded],
        conditioner: Conditioner,
        device: torch.device,
        preserve: float = 0.0,
    ) -> None:
        self.buckets = [tuple(picture.latents.shape[1:]) for picture, _ in pictures]
        self.priors = len(priors)
        self._pictures = [*pictures, *priors]
        self._first_prior, self._preserve = len(pictures), preserve
        self._texts, self._conditioner, self._device = texts, conditioner, device
        self._known: OrderedDict[tuple[int, int], ItemCond] = OrderedDict()

    def batches(self, items: Sequence[int], draws: Draws) -> Iterator[Batch]:
        """The pictures, each in the crop that its draw chooses, then pictures of the base model."""
        yield self._batch(items, draws.uniform("variant").tolist())
        if self._preserve > 0 and self.priors > 0:
            drawn = (draws.uniform("prior") * self.priors).long() + self._first_prior
            batch = self._batch(drawn.tolist(), [0.0] * len(drawn))
            yield replace(batch, weight=self._preserve, keeps_base=True, use="prior")

    def _batch(self, items: Sequence[int], draws: Sequence[float]) -> Batch:
        chosen = list(zip(items, self._crops(items, draws), strict=True))
        latents = torch.stack([self._pictures[i][0].latents[k] for i, k in chosen])
        cond = self._conditioner.batch([self._input(i, k) for i, k in chosen])
        return Batch(latents.to(self._device), cond)

    def _crops(self, items: Sequence[int], draws: Sequence[float]) -> list[int]:
        counts = [len(self._pictures[i][0].crops) for i in items]
        return [int(draw * count) for draw, count in zip(draws, counts, strict=True)]

    def _input(self, index: int, crop: int) -> ItemCond:
        if (index, crop) not in self._known:
            while len(self._known) >= KEPT_INPUTS:
                self._known.popitem(last=False)
            picture, text = self._pictures[index]
            width, height = picture.size
            self._known[index, crop] = self._conditioner.per_item(
                self._texts[text],
                width=width,
                height=height,
                original=picture.original,
                crop=picture.crops[crop],
                latent_shape=tuple(picture.latents.shape[1:]),
            )
        return self._known[index, crop]
