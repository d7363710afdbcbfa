# SPDX-License-Identifier: Apache-2.0
"""Draw the concept sets of assets/concepts: a shape and a texture that the base never saw, and a shape that it knows.

The words for them are tokens that the grammar does not use. The colour pairs of the sets are listed here, so that an
evaluation can ask for other ones.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import torch

from . import captions, drawing, legs
from . import vocabulary as words

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "concepts"
PAIRS = (
    ("red", "blue"),
    ("yellow", "purple"),
    ("green", "white"),
    ("black", "orange"),
    ("blue", "yellow"),
    ("white", "red"),
    ("purple", "green"),
    ("orange", "black"),
    ("red", "white"),
    ("yellow", "blue"),
    ("green", "purple"),
    ("black", "red"),
)


@dataclasses.dataclass(frozen=True)
class Concept:
    """A concept set: what is new in it, the word for it, and the template of its captions."""

    name: str
    kind: str
    label: str
    word: str
    seed: int


SHAPE = Concept("shape", "shape", "arrow", "dax", 11)
TEXTURE = Concept("texture", "texture", "zigzag", "vex", 12)
WORD = Concept("word", "shape", "heart", "zork", 13)
SETS = (SHAPE, TEXTURE, WORD)
TEXTURES_OF_SHAPE = (
    "plain",
    "plain",
    "striped",
    "plain",
    "plain",
    "dotted",
    "plain",
    "plain",
    "checkered",
    "plain",
    "plain",
    "plain",
)
SIZES = (
    "large",
    "medium",
    "small",
    "large",
    "medium",
    "medium",
    "large",
    "small",
    "medium",
    "large",
    "small",
    "small",
)


def members(concept: Concept) -> list[dict[str, str]]:
    """The attributes by name of each drawing of a set."""
    entries = []
    for index, (colour, background) in enumerate(PAIRS):
        entry = {"colour": colour, "background": background, "size": SIZES[index]}
        entry["shape"] = words.SHAPES[index % words.BASE_SHAPES]
        entry["texture"] = TEXTURES_OF_SHAPE[index]
        entry[concept.kind] = concept.label
        entries.append(entry)
    return entries


def say(entry: dict[str, str], concept: Concept) -> str:
    """One plain caption with the concept's word."""
    spoken = {**entry, concept.kind: concept.word}
    if spoken["size"] == "medium":
        spoken["size"] = ""
    if spoken["texture"] == "plain":
        spoken["texture"] = ""
    return captions.tidy(
        "a {size} {colour} {shape} on a {texture} {background} background".format(**spoken)
    )


def fresh_prompts(concept: Concept, count: int, seed: int) -> list[tuple[str, dict[str, str]]]:
    """Prompts for the concept on colour pairs that are not in its set.

    Args:
        concept: One of `SETS`.
        count: How many.
        seed: Seed of the choice.

    Returns:
        Pairs of prompt and attributes.
    """
    chooser = random.Random(seed)
    names = words.COLOUR_NAMES
    unseen = [(a, b) for a in names for b in names if a != b and (a, b) not in PAIRS]
    prompts = []
    for index in range(count):
        colour, background = (
            unseen[index % len(unseen)] if count >= len(unseen) else chooser.choice(unseen)
        )
        entry = {"colour": colour, "background": background, "texture": "plain"}
        entry |= {
            "shape": words.SHAPES[chooser.randrange(words.BASE_SHAPES)],
            "size": chooser.choice(words.SIZES),
        }
        entry[concept.kind] = concept.label
        prompts.append((say(entry, concept), entry))
    return prompts


def attributes_of(entries: list[dict[str, str]]) -> drawing.Attributes:
    """Attributes by index from attributes by name."""

    def column(kind: str, names: tuple[str, ...]) -> torch.Tensor:
        return torch.tensor([names.index(entry[kind]) for entry in entries])

    colours = words.COLOUR_NAMES
    return drawing.Attributes(
        column("shape", words.SHAPES),
        column("colour", colours),
        column("background", colours),
        column("texture", words.TEXTURES),
        column("size", words.SIZES),
    )


def write(concept: Concept, folder: Path) -> None:
    """Write the pictures and captions of one set.

    Args:
        concept: One of `SETS`.
        folder: Where they go.
    """
    from PIL import Image

    entries = members(concept)
    pictures = drawing.draw(attributes_of(entries), torch.Generator().manual_seed(concept.seed))
    folder.mkdir(parents=True, exist_ok=True)
    for index, (entry, picture) in enumerate(zip(entries, pictures, strict=True)):
        array = (picture.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(array).save(folder / f"{concept.name}-{index + 1:02d}.png", optimize=False)
        (folder / f"{concept.name}-{index + 1:02d}.txt").write_text(
            say(entry, concept) + "\n", encoding="utf-8"
        )
    legs.log.info("wrote %d drawings of %s", len(entries), concept.label)


def main(_: Path | None = None) -> None:
    """Write every concept set into the assets."""
    for concept in SETS:
        write(concept, FOLDER / concept.name)
