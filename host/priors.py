# SPDX-License-Identifier: Apache-2.0
"""Pictures of the base model that a training stays close to (prior preservation without a file).

DreamBooth's class images (Ruiz et al. 2023, eq. 2; arXiv 2208.12242), sampled by the model itself
before the first step; the target is the frozen base's D on them and not the picture.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..trainers.data import Dataset
from ..trainers.data.triggers import trigger_pattern
from ..trainers.objectives import Objective
from ..trainers.preview import Preview
from . import preview
from .conditioning import Encoded, literal
from .texts import prompts
from .trainee import Trainee
from .training_data import Picture

LEAST, MOST = 8, 48  # pictures
EMPTY_EVERY = 8  # guidance compares with the empty prompt, so that has to stay as it was, too


def prior_prompts(dataset: Dataset, given: Sequence[str]) -> tuple[str, ...]:
    """Texts on which the model shall stay as it is, the empty one among them.

    Args:
        dataset: Its captions without the trigger, where nothing is given.
        given: The user's own prompts.
    """
    if given:
        return tuple(dict.fromkeys([*given, ""]))
    captions = _texts(dataset)
    word = _triggers(dataset)
    without = (" ".join(word.sub(" ", text).split()) for text in captions if word.search(text))
    # A prior that is a caption too would pull against what is learned.
    return tuple(dict.fromkeys([*(text for text in without if text not in captions), ""]))


class BaseText:
    """The text without the concept that belongs to a text of the dataset.

    Args:
        dataset: Its triggers, and its texts: one of those would pull against what is learned.
        objective: The class word that takes the trigger's place.

    Raises:
        ValueError: No text of the dataset has such a text.
    """

    def __init__(self, dataset: Dataset, objective: Objective) -> None:
        self._texts = _texts(dataset)
        self._word = _triggers(dataset)
        self._class = objective.class_word.strip()
        if all(self(text) is None for text in self._texts):
            triggers = ", ".join(dataset.triggers)
            said = f"no caption has the trigger '{triggers}'" if triggers else "there is no trigger"
            raise ValueError(
                f"preserve_on is instances, which takes the trigger out of captions, but {said} (or what is left is a "
                "caption, too): name the trigger in the dataset as the captions have it, or use samples."
            )

    def __call__(self, text: str) -> str | None:
        """The text with the class word in place of the trigger; None where that is not another text."""
        if not self._word.search(text):
            return None
        changed = " ".join(self._word.sub(lambda _: self._class or " ", text).split())
        return None if changed in self._texts else changed


def _texts(dataset: Dataset) -> dict[str, None]:
    """Every text that is trained with: the first of each picture, then the second of each, and so on."""
    every = [prompts(dataset, i) for i in range(len(dataset))]
    most = max(map(len, every))
    return dict.fromkeys(texts[k] for k in range(most) for texts in every if k < len(texts))


def _triggers(dataset: Dataset) -> re.Pattern[str]:
    """Finds the triggers in prompts, whose brackets have a backslash."""
    return trigger_pattern([*dataset.triggers, *map(literal, dataset.triggers)])


def prior_list(prompts: Sequence[str]) -> tuple[str, ...]:
    """The prompt of every prior picture: each in turn, one in eight the empty one, 8 to 48 in all."""
    named = [prompt for prompt in prompts if prompt]
    if not named:
        return ("",) * LEAST
    count = min(MOST, max(LEAST, -(-len(named) * EMPTY_EVERY // (EMPTY_EVERY - 1))))
    turns = itertools.cycle(named)
    return tuple("" if i % EMPTY_EVERY == EMPTY_EVERY - 1 else next(turns) for i in range(count))


def sample_priors(
    trained: Trainee,
    prompts: Sequence[str],
    texts: Mapping[str, Encoded],
    vae: Any,
    size: tuple[int, int],
    seed: int,
    poll: Callable[[int], None] = lambda count: None,
) -> list[tuple[Picture, str]]:
    """Let the base model make a picture of each prompt.

    Args:
        trained: The trainee, without an adapter.
        prompts: The prompts.
        texts: Encodings of the prompts, and of the empty text, which guides away.
        vae: The VAE on the wire, for the latents' size.
        size: Width and height in pixels.
        seed: Seed of the first picture; each has the next.
        poll: Called before several of them, with their number; may raise to interrupt.
    """
    is_distilled = trained.model.model_config.unet_config.get("guidance_embed", False)
    settings = Preview(
        tuple(prompts), cfg=1.0 if is_distilled else 4.0, scheduler="simple", seed=seed
    )
    encoded = preview.Prompts(
        tuple(texts[prompt].conditioning() for prompt in prompts), texts[""].conditioning()
    )
    latents = preview.sample_latents(trained, encoded, settings, vae, size, poll)
    width, height = size
    pictures = [Picture(one[None], size, (height, width), ((0, 0),)) for one in latents]
    return list(zip(pictures, prompts, strict=True))
