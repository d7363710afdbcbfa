# SPDX-License-Identifier: Apache-2.0
"""The dataset as the loop reads it: latents and model inputs of every picture, encoded once, in memory."""

import re
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


def prior_prompts(dataset: Dataset, given: Sequence[str]) -> tuple[str, ...]:
    """Texts on which the model shall stay as it is.

    Args:
        dataset: Its captions without the trigger, and the empty text, where nothing is given.
        given: The user's own prompts.
    """
    if given:
        return tuple(dict.fromkeys(given))
    trigger = dataset.trigger.strip()
    captions = dict.fromkeys(item.caption for item in dataset.items)
    word = re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)") if trigger else re.compile(r"(?!)")
    without = (" ".join(word.sub(" ", text).split()) for text in captions if word.search(text))
    # A prior that is a caption too would pull against what is learned.
    return tuple(dict.fromkeys([*(text for text in without if text not in captions), ""]))


class TrainingData:
    """Implements the loop's ``Data``.

    Args:
        pictures: The encoded pictures.
        captions: The caption of each.
        texts: Encoded texts by text.
        priors: Texts on which the model shall stay as it is.
        conditioner: Makes model inputs.
        device: Where latents go.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        captions: Sequence[str],
        texts: dict[str, Encoded],
        priors: Sequence[str],
        conditioner: Conditioner,
        device: torch.device,
    ) -> None:
        self.buckets = [tuple(picture.latent.shape) for picture in pictures]
        self.priors = len(priors)
        self._pictures, self._captions, self._prior_texts = pictures, captions, priors
        self._texts, self._conditioner, self._device = texts, conditioner, device
        self._known: OrderedDict[tuple[int, str], ItemCond] = OrderedDict()

    def latents(self, items: Sequence[int]) -> torch.Tensor:
        """Clean latents ``[B, C, h, w]`` fp32 on the device."""
        return torch.stack([self._pictures[i].latent for i in items]).to(self._device)

    def cond(self, items: Sequence[int]) -> Any:
        """Model inputs of the pictures with their captions."""
        return self._conditioner.batch([self._input(i, self._captions[i]) for i in items])

    def prior_cond(self, items: Sequence[int], prompts: Sequence[int]) -> Any:
        """Model inputs of the pictures' sizes with prior texts."""
        pairs = zip(items, prompts, strict=True)
        return self._conditioner.batch([self._input(i, self._prior_texts[p]) for i, p in pairs])

    def _input(self, index: int, text: str) -> ItemCond:
        key = (index, text)
        if key not in self._known:
            while len(self._known) >= KEPT_INPUTS:
                self._known.popitem(last=False)
            picture = self._pictures[index]
            width, height = picture.size
            self._known[key] = self._conditioner.per_item(
                self._texts[text],
                width=width,
                height=height,
                original=picture.original,
                crop=picture.crop,
                latent_shape=tuple(picture.latent.shape),
            )
        return self._known[key]
