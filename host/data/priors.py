# SPDX-License-Identifier: Apache-2.0
"""Pictures of the base model that a training stays close to (prior preservation without a file).

DreamBooth's class images (Ruiz et al. 2023, eq. 2; arXiv 2208.12242), sampled by the model itself
before the first step; the target is the frozen base's D on them and not the picture.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...trainers.data import Dataset
from ...trainers.data.cache import Cache, key_of
from ...trainers.data.tensor_files import Entry
from ...trainers.data.triggers import trigger_pattern
from ...trainers.objectives import Objective
from ...trainers.preview import Preview
from ..model.trainee import Trainee
from ..preview import sampled as preview
from ..text.conditioning import Encoded, literal
from ..text.texts import prompts
from .training_data import Picture

LEAST, MOST = 8, 48  # pictures
EMPTY_EVERY = 8  # guidance compares with the empty prompt, so that has to stay as it was, too


def prior_prompts(
    dataset: Dataset, given: Sequence[str], words: Sequence[str] = ()
) -> tuple[str, ...]:
    """Texts on which the model shall stay as it is: the empty one among them, but none that is trained.

    Args:
        dataset: Its captions without the trigger, where nothing is given.
        given: The user's own prompts.
        words: New words, which are taken out as triggers are.
    """
    captions = _texts(dataset)
    wanted = list(given)
    if not given:
        word = _triggers(dataset, words)
        found = (text for text in captions if word.search(text))
        wanted = [" ".join(word.sub(" ", text).split()) for text in found]
    # A prior that is a caption too would pull against what is learned.
    return tuple(dict.fromkeys(text for text in [*wanted, ""] if text not in captions))


class BaseText:
    """The text without the concept that belongs to a text of the dataset.

    Args:
        dataset: Its triggers, and its texts: one of those would pull against what is learned.
        objective: The class word that takes the trigger's place.
        words: New words, which are taken out as triggers are.

    Raises:
        ValueError: No text of the dataset has such a text.
    """

    def __init__(self, dataset: Dataset, objective: Objective, words: Sequence[str] = ()) -> None:
        self._texts = _texts(dataset)
        self._word = _triggers(dataset, words)
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


def _triggers(dataset: Dataset, words: Sequence[str]) -> re.Pattern[str]:
    """Finds the triggers and new words in prompts, whose brackets have a backslash."""
    return trigger_pattern([*dataset.triggers, *map(literal, dataset.triggers), *words])


def prior_list(prompts: Sequence[str]) -> tuple[str, ...]:
    """The prompt of every prior picture: each in turn, one in eight the empty one if that is given, 8 to 48 in all."""
    named = [prompt for prompt in prompts if prompt]
    if not named:
        return ("",) * LEAST if prompts else ()
    if "" not in prompts:
        count = min(MOST, max(LEAST, len(named)))
        return tuple(itertools.islice(itertools.cycle(named), count))
    count = min(MOST, max(LEAST, -(-len(named) * EMPTY_EVERY // (EMPTY_EVERY - 1))))
    turns = itertools.cycle(named)
    return tuple("" if i % EMPTY_EVERY == EMPTY_EVERY - 1 else next(turns) for i in range(count))


class PriorPictures:
    """Pictures that the base model draws, once for all runs that stay close to the same.

    Args:
        cache: Where their latents are kept.
        base: Digest of the MODEL on the wire, and of all else that they depend on beside what ``draw`` is given.
    """

    def __init__(self, cache: Cache, *base: str) -> None:
        self._cache, self._base = cache, base

    def draw(
        self,
        trained: Trainee,
        prompts: Sequence[str],
        texts: Mapping[str, Encoded],
        vae: Any,
        size: tuple[int, int],
        seed: int,
        stage: Callable[[], Callable[[int], None]],
    ) -> list[tuple[Picture, str]]:
        """Let the base model make a picture of each prompt, where it has not made them already.

        Args:
            trained: The trainee, without an adapter.
            prompts: The prompts.
            texts: Encodings of the prompts, and of the empty text, which guides away.
            vae: The VAE on the wire, for the latents' size.
            size: Width and height in pixels.
            seed: Seed of the first picture; each has the next.
            stage: Begins to count them; what it gives is called before several, with their number, and may raise.
        """
        how = (size, seed, str(trained.compute_dtype), trained.device.type)
        key = key_of(*self._base, repr(how), *prompts)
        kept = self._cache.get(key)
        if kept is None:
            latents = _drawn(trained, prompts, texts, vae, size, seed, stage())
            kept = Entry({str(i): latent for i, latent in enumerate(latents)})
            self._cache.put(key, kept)
        width, height = size
        return [
            (Picture(kept.tensors[str(i)][None], size, (height, width), ((0, 0),)), prompt)
            for i, prompt in enumerate(prompts)
        ]


def _drawn(
    trained: Trainee,
    prompts: Sequence[str],
    texts: Mapping[str, Encoded],
    vae: Any,
    size: tuple[int, int],
    seed: int,
    poll: Callable[[int], None],
) -> list[torch.Tensor]:
    is_distilled = trained.model.model_config.unet_config.get("guidance_embed", False)
    settings = Preview(
        tuple(prompts), cfg=1.0 if is_distilled else 4.0, scheduler="simple", seed=seed
    )
    encoded = preview.Prompts(
        tuple(texts[prompt].conditioning() for prompt in prompts), texts[""].conditioning()
    )
    return preview.sample_latents(trained, encoded, settings, vae, size, poll)
