# SPDX-License-Identifier: Apache-2.0
"""The dataset as the loop reads it: latents and model inputs of every picture, encoded once, in memory."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..trainers.data import Dataset, fit, size_for
from . import autoencoder
from .conditioning import Conditioner, Encoded, ItemCond

KEPT_INPUTS = 128  # each holds a text encoding: 0.6 MB for SDXL, 8 MB for Flux


@dataclass(frozen=True, eq=False)
class Picture:
    """An encoded picture: its latent ``[C, h, w]`` fp32 on the CPU, and sizes in pixels."""

    latent: torch.Tensor
    size: tuple[int, int]
    original: tuple[int, int]
    crop: tuple[int, int]


def encode_pictures(
    dataset: Dataset, vae: Any, model: Any, poll: Callable[[], None] = lambda: None
) -> tuple[Picture, ...]:
    """Decode, fit to buckets and encode every picture of a dataset.

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
    for item in dataset.items:
        poll()
        fitted = fit(item.read(), size_for(*item.measure(), dataset.resolution))
        latent = autoencoder.encode(vae, model, fitted.pixels[None])[0]
        height, width = fitted.pixels.shape[:2]
        with torch.inference_mode(False):
            pictures.append(Picture(latent.clone(), (width, height), fitted.original, fitted.crop))
    return tuple(pictures)


class TrainingData:
    """Implements the loop's ``Data``.

    Args:
        pictures: The encoded pictures, with the caption of each.
        priors: Pictures of the base model, with the prompt of each.
        texts: Encoded texts by text.
        conditioner: Makes model inputs.
        device: Where latents go.
    """

    def __init__(
        self,
        pictures: Sequence[tuple[Picture, str]],
        priors: Sequence[tuple[Picture, str]],
        texts: dict[str, Encoded],
        conditioner: Conditioner,
        device: torch.device,
    ) -> None:
        self.buckets = [tuple(picture.latent.shape) for picture, _ in pictures]
        self.priors = len(priors)
        self._pictures = [*pictures, *priors]
        self._first_prior = len(pictures)
        self._texts, self._conditioner, self._device = texts, conditioner, device
        self._known: OrderedDict[int, ItemCond] = OrderedDict()

    def latents(self, items: Sequence[int]) -> torch.Tensor:
        """Clean latents ``[B, C, h, w]`` fp32 on the device."""
        return torch.stack([self._pictures[i][0].latent for i in items]).to(self._device)

    def cond(self, items: Sequence[int]) -> Any:
        """Model inputs of the pictures with their captions."""
        return self._conditioner.batch([self._input(i) for i in items])

    def prior_latents(self, priors: Sequence[int]) -> torch.Tensor:
        """Latents of the base model's pictures, as ``latents``."""
        return self.latents([self._first_prior + i for i in priors])

    def prior_cond(self, priors: Sequence[int]) -> Any:
        """Model inputs of the base model's pictures with their prompts."""
        return self.cond([self._first_prior + i for i in priors])

    def _input(self, index: int) -> ItemCond:
        if index not in self._known:
            while len(self._known) >= KEPT_INPUTS:
                self._known.popitem(last=False)
            picture, text = self._pictures[index]
            width, height = picture.size
            self._known[index] = self._conditioner.per_item(
                self._texts[text],
                width=width,
                height=height,
                original=picture.original,
                crop=picture.crop,
                latent_shape=tuple(picture.latent.shape),
            )
        return self._known[index]
