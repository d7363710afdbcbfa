# SPDX-License-Identifier: Apache-2.0
"""The dataset as the loop reads it: every step draws texts and views of its pictures from what was encoded before."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from ...trainers.data.batch import Batch
from ...trainers.data.cache import Recent
from ...trainers.data.order import Order
from ...trainers.random import Draws
from ..text.conditioning import Conditioner, Encoded, ItemCond
from ..text.live_texts import LiveTexts

INPUT_BYTES = (
    2**29
)  # of model inputs kept: each holds a text encoding, 0.6 MB for SDXL, 8 MB for Flux


@dataclass(frozen=True, eq=False)
class View:
    """One view of a picture, encoded: fp32 on the CPU.

    Attributes:
        latents: ``[C, h, w]``; their mean where there is a spread.
        size: Width and height in pixels.
        original: Height and width before scaling and cropping.
        crop: Top and left of the crop.
        spread: Standard deviation of the latents, of their shape; None where they are a point.
        mask: How much each place counts, ``[1, h, w]`` in 0..1; None counts all.
    """

    latents: torch.Tensor
    size: tuple[int, int]
    original: tuple[int, int]
    crop: tuple[int, int] = (0, 0)
    spread: torch.Tensor | None = None
    mask: torch.Tensor | None = None


class Source(Protocol):
    """Encoded pictures, by number."""

    @property
    def shapes(self) -> Sequence[tuple[int, ...]]:
        """Shape of the latents of each picture, without the batch."""

    @property
    def order(self) -> Sequence[int]:
        """The pictures of one epoch before they are shuffled, each as often as it is repeated."""

    def view(self, index: int, u: float) -> View:
        """The view of a picture for a uniform draw in [0, 1)."""

    def text(self, index: int, u: float) -> str:
        """The text of a picture for a uniform draw in [0, 1)."""

    def weight(self, index: int) -> float:
        """The factor of a picture's loss."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An encoded picture: latents ``[K, C, h, w]`` fp32 on the CPU of its K crops, and sizes in pixels."""

    latents: torch.Tensor
    size: tuple[int, int]
    original: tuple[int, int]
    crops: tuple[tuple[int, int], ...]


class Held:
    """Pictures in memory, each with one text.

    Args:
        pictures: The pictures with their texts.
    """

    def __init__(self, pictures: Sequence[tuple[Picture, str]]) -> None:
        self.shapes = [tuple(picture.latents.shape[1:]) for picture, _ in pictures]
        self.order = range(len(pictures))
        self._pictures = pictures

    def view(self, index: int, u: float) -> View:
        """One of the picture's crops."""
        picture, _ = self._pictures[index]
        crop = int(u * len(picture.crops))
        return View(picture.latents[crop], picture.size, picture.original, picture.crops[crop])

    def text(self, index: int, u: float) -> str:
        """The picture's text."""
        return self._pictures[index][1]

    def weight(self, index: int) -> float:
        """All count alike."""
        return 1.0


@dataclass(frozen=True, eq=False)
class Prior:
    """What keeps the model as it was (Ruiz et al. 2023, eq. 2; arXiv 2208.12242), for each slot of a step.

    Attributes:
        weight: Factor of its loss.
        classes: Class images; the plain loss on them counts.
        drawn: Pictures that the base model drew; its own D on them is the target.
        base_text: The text without the concept that belongs to a text, None where there is none: the base's D with it
            on the picture's own noised latents is the target.
    """

    weight: float
    classes: Source | None = None
    drawn: Source | None = None
    base_text: Callable[[str], str | None] | None = None


class TrainingData:
    """Implements the loop's ``Data``.

    Args:
        pictures: The pictures of the dataset.
        priors: What keeps the model as it was.
        texts: Encoded texts by text.
        conditioner: Makes model inputs.
        device: Where latents go.
        live: Encodes the texts that change while they are trained.
    """

    def __init__(
        self,
        pictures: Source,
        priors: Sequence[Prior],
        texts: Mapping[str, Encoded],
        conditioner: Conditioner,
        device: torch.device,
        live: LiveTexts | None = None,
    ) -> None:
        self.buckets = [pictures.shapes[i] for i in pictures.order]
        self._pictures = pictures
        self._priors = [prior for prior in priors if prior.weight > 0]
        self._texts, self._conditioner, self._device = texts, conditioner, device
        self._live = live
        self._inputs: Recent[ItemCond] = Recent(INPUT_BYTES)
        self._orders: dict[tuple[int, int], Order] = {}

    def batches(self, items: Sequence[int], draws: Draws) -> Iterator[Batch]:
        """The pictures, each in the view and with the text that its draws choose, then what keeps the model."""
        source = self._pictures
        chosen = [source.order[item] for item in items]
        views = _views(source, chosen, draws)
        texts = _texts(source, chosen, draws)
        batch = self._batch(source, chosen, views, texts, draws)
        yield batch
        for prior in self._priors:
            if prior.classes is not None:
                yield self._class_images(prior.classes, prior.weight, draws)
            if prior.drawn is not None:
                yield self._drawn(prior.drawn, prior.weight, draws)
            if prior.base_text is not None:
                yield from self._on_instances(prior, batch, views, texts)

    def _class_images(self, source: Source, weight: float, draws: Draws) -> Batch:
        """As many class images as pictures, of one shape in the whole step, each once an epoch of theirs."""
        which = (draws.seed, draws.batch)
        if which not in self._orders:
            shapes = [source.shapes[i] for i in source.order]
            self._orders[which] = Order(shapes, draws.batch, draws.seed, use="class ")
        step = self._orders[which].indices(draws.step)
        chosen = [source.order[step[slot]] for slot in draws.slots]
        own = draws.of("class")
        views, texts = _views(source, chosen, own), _texts(source, chosen, own)
        batch = self._batch(source, chosen, views, texts, own)
        return replace(batch, weight=weight * batch.weight, plain=True, use="class")

    def _drawn(self, source: Source, weight: float, draws: Draws) -> Batch:
        chosen = (draws.uniform("prior") * len(source.order)).long().tolist()
        views = [source.view(i, 0.0) for i in chosen]
        texts = [source.text(i, 0.0) for i in chosen]
        batch = self._batch(source, chosen, views, texts, draws.of("prior"))
        base = self._base_cond(views, texts)
        return replace(batch, weight=weight, keeps_base=True, use="prior", base_cond=base)

    def _on_instances(
        self, prior: Prior, batch: Batch, views: Sequence[View], texts: Sequence[str]
    ) -> Iterator[Batch]:
        """The same latents with the same draws, so the same noised ones; its slots without such a text do not count."""
        without = [prior.base_text(text) if prior.base_text else None for text in texts]
        if all(text is None for text in without):
            return
        counts = [0.0 if text is None else prior.weight for text in without]
        filled = [text or "" for text in without]
        yield replace(
            batch,
            cond=self._cond(views, filled),
            base_cond=self._base_cond(views, filled),
            weight=torch.tensor(counts, device=self._device) * batch.weight,
            mask=None,
            keeps_base=True,
        )

    def _batch(
        self,
        source: Source,
        chosen: Sequence[int],
        views: Sequence[View],
        texts: Sequence[str],
        draws: Draws,
    ) -> Batch:
        latents = torch.stack([view.latents for view in views])
        spreads = [view.spread for view in views if view.spread is not None]
        if len(spreads) == len(views):
            latents = latents + torch.stack(spreads) * draws.normal(latents.shape[1:], "posterior")
        return Batch(
            latents.to(self._device),
            self._cond(views, texts),
            weight=self._weights([source.weight(i) for i in chosen]),
            mask=self._mask(views, latents.shape),
        )

    def _weights(self, weights: Sequence[float]) -> torch.Tensor | float:
        if all(weight == 1.0 for weight in weights):
            return 1.0
        return torch.tensor(weights, dtype=torch.float32, device=self._device)

    def _mask(self, views: Sequence[View], shape: Sequence[int]) -> torch.Tensor | None:
        """``[B, 1, h, w]``, with a 1 for each further dimension between that the latents have."""
        if all(view.mask is None for view in views):
            return None
        whole = torch.ones(1, *shape[-2:])
        mask = torch.stack([whole if view.mask is None else view.mask for view in views])
        between = [1] * (len(shape) - 4)
        return mask.reshape(len(views), 1, *between, *shape[-2:]).to(self._device)

    def _cond(self, views: Sequence[View], texts: Sequence[str]) -> object:
        live = self._live
        changing = [t for t in dict.fromkeys(texts) if live.is_live(t)] if live else []
        now = live.encode(changing) if live and changing else {}
        return self._conditioner.batch(
            [
                self._made(view, now[text]) if text in now else self._input(view, text)
                for view, text in zip(views, texts, strict=True)
            ]
        )

    def _base_cond(self, views: Sequence[View], texts: Sequence[str]) -> object:
        """As the CLIP on the wire encodes the texts; None where that is what is trained on, too."""
        if self._live is None or not any(map(self._live.is_live, texts)):
            return None
        pairs = zip(views, texts, strict=True)
        return self._conditioner.batch([self._input(view, text) for view, text in pairs])

    def _input(self, view: View, text: str) -> ItemCond:
        key = (text, view.size, view.original, view.crop, tuple(view.latents.shape))
        made = self._inputs.get(key)
        if made is None:
            made = self._made(view, self._texts[text])
            self._inputs.put(key, made, made.bytes)
        return made

    def _made(self, view: View, encoded: Encoded) -> ItemCond:
        return self._conditioner.per_item(
            encoded,
            width=view.size[0],
            height=view.size[1],
            original=view.original,
            crop=view.crop,
            latent_shape=tuple(view.latents.shape),
        )


def _views(source: Source, chosen: Sequence[int], draws: Draws) -> list[View]:
    drawn = draws.uniform("variant").tolist()
    return [source.view(i, u) for i, u in zip(chosen, drawn, strict=True)]


def _texts(source: Source, chosen: Sequence[int], draws: Draws) -> list[str]:
    drawn = draws.uniform("caption").tolist()
    return [source.text(i, u) for i, u in zip(chosen, drawn, strict=True)]
