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
from ..trainers.preview import Preview
from . import preview
from .conditioning import Encoded
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
    trigger = dataset.trigger.strip()
    captions = dict.fromkeys(item.caption for item in dataset.items)
    word = re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)" if trigger else r"(?!)")
    without = (" ".join(word.sub(" ", text).split()) for text in captions if word.search(text))
    # A prior that is a caption too would pull against what is learned.
    return tuple(dict.fromkeys([*(text for text in without if text not in captions), ""]))


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
