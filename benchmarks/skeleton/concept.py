# SPDX-License-Identifier: Apache-2.0
"""Did the LoRA learn the concept, and did everything else stay? Numbers by the scorer.

The concept is the shape of assets/concepts/shape, which graft-mini has never seen. It counts as found when the scorer
gives shape, colour and background as the prompt has them, each with a probability of at least one half.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch

from graft.metrics.scorer import load_scorer
from graft.tools.mini import captions, evaluate
from graft.tools.mini import vocabulary as words
from graft.tools.mini.make_concepts import PAIRS, SHAPE, Concept

from .graphs import WORKFLOW

WORD, LABEL = SHAPE.word, SHAPE.label
PROMPT_SEED, NOISE_SEED = 3, 90_000

Prompts = list[tuple[str, dict[str, str]]]


def concept_prompts(count: int = 64, word: str = WORD, style: Concept | None = None) -> Prompts:
    """Prompts for the concept in colours that no training picture has together, and what they ask for.

    Args:
        count: How many.
        word: For the shape.
        style: The texture of the background, by its word; plain when left out.

    Returns:
        Prompts, and the attributes that they ask for.
    """
    said, texture = (style.word, style.label) if style else ("", "plain")
    colours = words.COLOUR_NAMES
    pairs = [(one, two) for one in colours for two in colours if one != two]
    fresh = [pair for pair in pairs if pair not in PAIRS]
    chooser = random.Random(PROMPT_SEED)
    chooser.shuffle(fresh)
    made: Prompts = []
    for number in range(count):
        colour, background = fresh[number % len(fresh)]
        size = chooser.choice(words.SIZES)
        text = captions.tidy(f"a {size} {colour} {word} on a {said} {background} background")
        asked = {"shape": LABEL, "colour": colour, "background": background, "texture": texture}
        made.append((text, asked))
    return made


def other_prompts(count: int = 256) -> Prompts:
    """Prompts of the base model's own shapes, and what they ask for."""
    return captions.prompts(count, PROMPT_SEED)


def pictures(wires: Sequence[Any], prompts: Prompts, **options: Any) -> torch.Tensor:
    """Sample prompts with a MODEL, CLIP and VAE; the same seeds every time."""
    with torch.inference_mode():
        return evaluate.sample(*wires, [text for text, _ in prompts], seed=NOISE_SEED, **options)


def found(images: torch.Tensor, prompts: Prompts) -> dict[str, float]:
    """Shares of pictures by attribute, and `all` for shape AND colour AND background."""
    shares = evaluate.score(images, [asked for _, asked in prompts], load_scorer())
    return {kind: float(share) for kind, share in shares.items()}


def shipped(node: Any) -> dict[str, Any]:
    """The widgets of a node, given by its class, as the shipped workflow has them."""
    from tests.host.workflow import load, widget_values

    info = node.GET_NODE_INFO_V1()
    (found,) = (n for n in load(WORKFLOW)["nodes"] if n["type"] == info["name"])
    return widget_values(found, info)


def train(wires: Sequence[Any], **changes: Any) -> Any:
    """Train graft-mini on the drawings of the concept with the nodes, in this process.

    Args:
        wires: MODEL, CLIP and VAE.
        changes: Widgets that differ from the shipped workflow's.

    Returns:
        The outputs of the training node.
    """
    from types import SimpleNamespace

    from graft.nodes.dataset import LoadImages
    from graft.nodes.recipes import TrainLora

    model, clip, vae = wires
    held = SimpleNamespace(unique_id="1", prompt={}, extra_pnginfo={})
    node = type("TrainLora", (TrainLora,), {"hidden": held})
    with torch.inference_mode():
        data = LoadImages.execute(**shipped(LoadImages)).args[0]
        sockets = {"model": model, "clip": clip, "vae": vae, "dataset": data}
        return node.execute(**sockets, **(shipped(TrainLora) | changes)).args


def learned(
    base: Any, tuned: Any, clip: Any, vae: Any, count: int = 64, others: int = 256
) -> dict[str, float]:
    """What a LoRA did: the concept before and after, and what is kept of other prompts.

    Args:
        base: The MODEL before.
        tuned: The MODEL after.
        clip: CLIP of both.
        vae: VAE of both.
        count: Prompts for the concept.
        others: Other prompts.

    Returns:
        ``before`` (the shape alone counts), ``after`` and ``kept`` (a share of the base's score),
        and what they are made of.
    """
    asked, rest = concept_prompts(count), other_prompts(others)
    before = found(pictures((base, clip, vae), asked), asked)
    after = found(pictures((tuned, clip, vae), asked), asked)
    other_before = found(pictures((base, clip, vae), rest), rest)["all"] if others else 0.0
    other_after = found(pictures((tuned, clip, vae), rest), rest)["all"] if others else 0.0
    return {
        "before": before["shape"],
        "after": after["all"],
        "after_shape": after["shape"],
        "after_colour": after["colour"],
        "after_background": after["background"],
        "other_before": other_before,
        "other_after": other_after,
        "kept": other_after / other_before if other_before else 0.0,
    }
