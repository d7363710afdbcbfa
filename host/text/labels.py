# SPDX-License-Identifier: Apache-2.0
"""Class labels in the place of texts, for models that know classes and no text.

A picture's caption becomes the number of its class, and the empty text of caption dropout no class: so the rest of a
training, its caches and its previews are those of texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ...plain import plain
from ...trainers.data import Captioning, Dataset
from ..model import ddpm
from ..model.ddpm_vae import pixel_vae

if TYPE_CHECKING:
    from ..request import Request

_SEPARATORS = re.compile(r"[\s,;]+")
_MAX_PICTURES = 4096


@dataclass(frozen=True)
class LabelEncoder:
    """Stands where a CLIP does: makes CONDITIONING of a class, given by its number or its name.

    Attributes:
        classes: How many there are; 0 where the model knows none, and any text is the empty one.
        has_unlabelled: Whether the empty text is a class, too.
        names: Of the classes, where they have some.
    """

    classes: int
    has_unlabelled: bool
    names: tuple[str, ...] = ()
    patcher = None
    cond_stage_model = None

    @property
    def digest(self) -> str:
        """What encoded texts depend on."""
        return f"labels {self.classes} {self.has_unlabelled} {self.names!r}"

    def tokenize(self, text: str) -> int:
        """The number of the class that a text names.

        Raises:
            ValueError: It names none.
        """
        text = text.strip()
        if not self.classes or not text:
            if self.classes and not self.has_unlabelled:
                raise ValueError(
                    f"An empty text stands for no class, and this MODEL has {self.classes} classes and none for that: "
                    "name a class everywhere, in the negative of a preview, too, and train without caption dropout."
                )
            return ddpm.NO_CLASS
        if text in self.names:
            return self.names.index(text)
        if text.isascii() and text.isdigit() and int(text[:9]) < self.classes:
            return int(text[:9])
        named = f", or one of {', '.join(map(plain, self.names[:8]))}" if self.names else ""
        raise ValueError(
            f"{plain(text, 80)!r} is no class of this MODEL: give a number from 0 to {self.classes - 1}{named}."
        )

    def encode_from_tokens_scheduled(self, label: int) -> list[Any]:
        """The CONDITIONING of one class."""
        return conditioning([label])


def conditioning(labels: Sequence[int]) -> list[Any]:
    """A CONDITIONING that gives the pictures of a batch these classes, in turn.

    Args:
        labels: Class numbers, `ddpm.NO_CLASS` for none.
    """
    return [[torch.zeros(1, 1, 1), {ddpm.LABELS: torch.tensor(labels)}]]


def encoder(model: Any, names: Sequence[str] = ()) -> LabelEncoder:
    """The encoder for a MODEL.

    Raises:
        ValueError: The MODEL is no pixel diffusion model.
    """
    facts = ddpm.needed(model)
    return LabelEncoder(facts.classes, facts.unlabelled is not None, tuple(names))


def conditionings(
    model: Any, labels: str, count: int, size: tuple[int, int]
) -> tuple[list[Any], list[Any], torch.Tensor]:
    """What a sampler needs to draw pictures of classes.

    Args:
        model: A pixel diffusion model.
        labels: Numbers with commas or spaces between; nothing where pictures are to be of no class.
        count: Pictures of each.
        size: Width and height; 0 for the model's own.

    Returns:
        Positive, negative (no class; the positive one where the model has none for that) and an empty latent
        ``[N, C, H, W]``.

    Raises:
        ValueError: There is no such class, or there are too many pictures.
    """
    facts, texts = ddpm.needed(model), encoder(model)
    asked = [part for part in _SEPARATORS.split(labels.strip()) if part]
    if asked and not facts.embedded:
        raise ValueError("This MODEL knows no classes: leave labels empty.")
    numbers = [n for n in map(texts.tokenize, asked or [""]) for _ in range(count)]
    if len(numbers) > _MAX_PICTURES:
        raise ValueError(f"These are {len(numbers)} pictures; {_MAX_PICTURES} are possible.")
    positive = conditioning(numbers)
    has_none = not facts.embedded or facts.unlabelled is not None
    negative = conditioning([ddpm.NO_CLASS]) if has_none else positive
    width, height = (given or own for given, own in zip(size, facts.size, strict=True))
    return positive, negative, torch.zeros(len(numbers), facts.channels, height, width)


def prepared(request: Request) -> Request:
    """The request, with classes in the place of texts where its MODEL knows no text.

    Raises:
        ValueError: Something in it is about text, or a picture has no class that the MODEL knows.
    """
    facts = ddpm.of_model(request.model)
    if facts is None:
        return request
    for name in ("clip", "tokens", "text_network"):
        if getattr(request, name) is not None:
            raise ValueError(
                f"This MODEL knows classes and no text: disconnect {name}. A training of it is made with Train, "
                "where clip is optional."
            )
    if request.dataset.classes is not None:
        raise ValueError("This MODEL knows no text to keep a class with: leave Class Images out.")
    held_out, objective = request.validation, request.objective
    dataset = labelled(request.dataset, facts)
    if objective.preserve > 0:
        note = "preserve is off: it keeps a model by its texts, and this MODEL knows classes only."
        dataset = replace(dataset, warnings=(*dataset.warnings, note))
    return replace(
        request,
        objective=replace(objective, preserve=0.0),
        clip=encoder(request.model, request.dataset.labels),
        vae=request.vae or pixel_vae(facts.channels),
        dataset=dataset,
        validation=None if held_out is None else labelled(held_out, facts),
    )


def wire(clip: Any) -> Any:
    """The CLIP that a training hands on: None where there was none."""
    return None if isinstance(clip, LabelEncoder) else clip


def labelled(dataset: Dataset, facts: ddpm.Ddpm) -> Dataset:
    """The dataset with the number of its class as the caption of each picture.

    Args:
        dataset: Pictures with labels; of captions only the share without one counts.
        facts: The model.

    Raises:
        ValueError: A picture has no class that the model knows.
    """

    def change(part: Dataset) -> Dataset:
        items = tuple(
            replace(item, captions=(_text(item.label, item.name, facts),)) for item in part.items
        )
        how = Captioning(dropout=part.captioning.dropout if facts.embedded else 0.0)
        return replace(part, items=items, captioning=how, trigger="")

    if any(one.captioning.dropout for one in dataset.parts or (dataset,)):
        if facts.embedded and facts.unlabelled is None:
            raise ValueError(
                f"Caption dropout trains pictures without a class, and this MODEL has {facts.classes} classes and none "
                "for that: set dropout in Captions to 0, or make the MODEL with unlabelled on."
            )
    return dataset.map(change)


def _text(label: int | None, name: str, facts: ddpm.Ddpm) -> str:
    if not facts.embedded:
        return ""
    if label is None and facts.unlabelled is not None:
        return ""
    if label is None or label >= facts.classes:
        which = "no class" if label is None else f"class {label}"
        raise ValueError(
            f"{name or 'A picture'} is of {which}; this MODEL has classes 0 to {facts.classes - 1}. Put pictures into "
            "a folder for each class and set layout to classes, or give labels in metadata.jsonl."
        )
    return str(label)
