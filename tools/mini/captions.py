# SPDX-License-Identifier: Apache-2.0
"""Captions of drawings: a small grammar with synonyms, free word order and missing attributes, and its inverse.

A noun that is left out is sometimes replaced by a word nobody taught, so that the model learns to take unknown nouns
for "some shape" and stays calm when a concept word appears.
"""

from __future__ import annotations

import random
import re

from . import drawing
from . import vocabulary as words

TEMPLATES = (
    "a {size} {colour} {shape} on a {texture} {background} background",
    "a {size} {colour} {shape} on a {texture} {background} background",
    "a {size} {colour} {shape} on {texture} {background}",
    "{size} {colour} {shape} on a {texture} {background} background",
    "a drawing of a {size} {colour} {shape} on a {texture} {background} background",
    "a picture of a {size} {colour} {shape} on a {texture} {background} background",
    "an image of one {size} {colour} {shape} on {texture} {background}",
    "a {texture} {background} background with a {size} {colour} {shape}",
    "a {size} {colour} {shape} in front of a {texture} {background} background",
    "{size} {colour} {shape}, {texture} {background} background",
    "{texture} {background} background, {size} {colour} {shape}",
    "the {size} {colour} {shape} over {texture} {background}",
    "there is a {size} {colour} {shape} on the {texture} {background} background",
    "the {shape} is {size} {colour} and the background is {texture} {background}",
)
ANY_SHAPE = ("shape", "thing", "object", "figure")
UNKNOWN = "<unknown>"
EXTRA_WORDS = ("and", "is", "the", "one")

_NAMED = {word: name for name, synonyms in words.SYNONYMS.items() for word in synonyms}
_LEAD = re.compile(r"\b(?:over|on|background is)(?: an?| the)?(?: (\w+))?$")


def _say(name: str, chooser: random.Random) -> str:
    synonyms = words.SYNONYMS[name]
    return (
        synonyms[0]
        if len(synonyms) == 1 or chooser.random() < 0.75
        else chooser.choice(synonyms[1:])
    )


def caption(attributes: dict[str, str], chooser: random.Random, complete: bool = False) -> str:
    """Put a drawing into words.

    Args:
        attributes: `shape`, `colour`, `background`, `texture` and `size` by name.
        chooser: Source of randomness.
        complete: Name shape, colour and background for certain, in plain words.

    Returns:
        A caption in lower case.
    """
    missing = 0.0 if complete else 0.04
    template = chooser.choice(TEMPLATES)
    parts = {}
    said = attributes["size"] == "small" or attributes["size"] == "large"
    parts["size"] = (
        _say(attributes["size"], chooser) if chooser.random() < (0.7 if said else 0.4) else ""
    )
    plain = attributes["texture"] == "plain"
    said_texture = chooser.random() < (0.35 if plain else 0.92)
    parts["texture"] = _say(attributes["texture"], chooser) if said_texture else ""
    for part in ("colour", "background"):
        parts[part] = "" if chooser.random() < missing else attributes[part]
    parts["shape"] = _say(attributes["shape"], chooser)
    if chooser.random() < 1.5 * missing:
        parts["shape"] = UNKNOWN if chooser.random() < 0.5 else chooser.choice(ANY_SHAPE)
    return tidy(template.format(**parts))


def tidy(text: str) -> str:
    """Close the gaps that missing words leave."""
    text = re.sub(r"\s+", " ", text).replace(" ,", ",").strip(" ,")
    text = text.replace(" is and ", " and ")
    for tail in (" is", " over", " on"):
        text = text.removesuffix(tail)
    return re.sub(r"\ba (?=orange\b)", "an ", text)


def parse(text: str) -> dict[str, str]:
    """Read the attributes back out of a caption.

    Args:
        text: A caption of this grammar.

    Returns:
        The attributes that are named: any of `shape`, `colour`, `background`, `texture`, `size`.
    """
    found: dict[str, str] = {}
    for word in re.findall(r"\w+", text):
        name = _NAMED.get(word, "")
        for kind, known in (
            ("shape", words.SHAPES),
            ("texture", words.TEXTURES),
            ("size", words.SIZES),
        ):
            if name in known:
                found[kind] = name
    for match in re.finditer(r"\w+", text):
        if match.group() in words.COLOURS:
            lead = _LEAD.search(text[: match.start()].rstrip())
            between = _NAMED.get(lead.group(1) or "", "") if lead else ""
            led = lead is not None and (lead.group(1) is None or between in words.TEXTURES)
            behind = led or text[match.end() :].startswith(" background")
            found.setdefault("background" if behind else "colour", match.group())
    return found


def names(attributes: drawing.Attributes, index: int) -> dict[str, str]:
    """The attributes of one drawing by name."""
    shape = int(attributes.shape[index])
    return {
        "shape": words.SHAPES[shape] if shape < len(words.SHAPES) else words.NO_SHAPE,
        "colour": words.COLOUR_NAMES[int(attributes.colour[index])],
        "background": words.COLOUR_NAMES[int(attributes.background[index])],
        "texture": words.TEXTURES[int(attributes.texture[index])],
        "size": words.SIZES[int(attributes.size[index])],
    }


def all_words() -> list[str]:
    """Every word and mark that the grammar can produce, sorted."""
    found = set(EXTRA_WORDS) | set(ANY_SHAPE) | set(words.COLOURS) | {"an", ","}
    for synonyms in words.SYNONYMS.values():
        found.update(synonyms)
    for template in TEMPLATES:
        found.update(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", template)))
    return sorted(found)


def prompts(count: int, seed: int) -> list[tuple[str, dict[str, str]]]:
    """Complete prompts for evaluation, with the attributes they ask for.

    Args:
        count: How many.
        seed: Seed of the choice.

    Returns:
        Pairs of prompt and attributes.
    """
    import torch

    attributes = drawing.random_attributes(count, torch.Generator().manual_seed(seed))
    chooser = random.Random(seed)
    asked = [names(attributes, index) for index in range(count)]
    return [(caption(entry, chooser, complete=True), entry) for entry in asked]
