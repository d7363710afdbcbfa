# SPDX-License-Identifier: Apache-2.0
"""Token vectors: new words that text encoders learn (Gal et al. 2022; arXiv 2208.01618), pure torch.

A concept stands in prompts by its name and is, for each text encoder, a matrix of n rows, one for each of the n places
that it takes up among the encoder's tokens. Nothing else of the encoder's table is trained.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..registry import check_limits, option

PREFIX = "embeddings."  # of parameters; the optimizer's groups go by it
BUNDLE = "bundle_emb."  # of tensors in a file, as kohya and ComfyUI name bundled embeddings
_NAME = re.compile(r"[^\W\d]\w*")
_NOT_A_NAME = ("embedding", "nan", "inf", "infinity")


@dataclass(frozen=True)
class Concept:
    """One new word."""

    name: str = option("TOK", "The word that stands for the concept in captions and prompts.")
    vectors: int = option(
        2,
        "Places that it takes up among the tokens: more hold more and fit less well beside other words.",
        min=1,
        max=32,
    )
    init: str = option(
        "",
        "Words that it begins with, woman for example: the first tokens of them, over again where there are fewer. "
        "Empty: noise of the size of the other words.",
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if not _NAME.fullmatch(self.name) or self.name.lower() in _NOT_A_NAME:
            raise ValueError(
                f"'{self.name}' cannot be a concept's name: use letters, digits and _ with a letter first, TOK for "
                "example."
            )


@dataclass(frozen=True)
class Tokens:
    """The concepts that are trained together.

    Attributes:
        concepts: With different names.
        retraction: How much of the difference in size to the other words is taken back after each step, as a power:
            0 none, 0.1 as in the reference of pivotal tuning, 1 all.
    """

    concepts: tuple[Concept, ...]
    retraction: float = option(
        0.1,
        "How strongly the vectors are drawn to the size of the other words after each step; 0: not at all.",
        min=0.0,
        max=1.0,
    )

    def __post_init__(self) -> None:
        check_limits(self)
        names = [concept.name for concept in self.concepts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"The concept {twice[0]} is there twice; give each another name.")

    @property
    def names(self) -> tuple[str, ...]:
        """The names, the longest first: TOK2 is not TOK and a 2."""
        return tuple(sorted((c.name for c in self.concepts), key=lambda name: (-len(name), name)))

    def found(self, text: str) -> tuple[str, ...]:
        """The concepts that a text names, as words of their own."""
        return tuple(dict.fromkeys(match[0] for match in self.pattern.finditer(text)))

    @property
    def pattern(self) -> re.Pattern[str]:
        """Finds the names in a text."""
        return pattern(self.names)


def pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Finds any of ``names`` in a text, the longest first, where it is a word of its own."""
    longest = sorted(names, key=lambda name: (-len(name), name))
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")


@dataclass(frozen=True, eq=False)
class Table:
    """What an encoder's own words are like.

    Attributes:
        width: Of a vector.
        std: Standard deviation over the whole table.
        words: By the words of a concept's ``init``, their vectors ``[T, width]``.
    """

    width: int
    std: float
    words: Mapping[str, torch.Tensor]


class TokenVectors:
    """The trained vectors of all concepts in all encoders.

    Args:
        tokens: The concepts.
        tables: By the encoder's key (``clip_l``, ``clip_g``).
        seed: Of the noise that a concept without words begins with.
        device: Where the vectors are.

    Attributes:
        vectors: ``[n, width]`` in fp32, by concept and encoder.

    Raises:
        ValueError: A concept's words have no tokens.
    """

    def __init__(
        self,
        tokens: Tokens,
        tables: Mapping[str, Table],
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.tokens = tokens
        self.std = {key: table.std for key, table in tables.items()}
        self.vectors: dict[str, dict[str, nn.Parameter]] = {}
        for concept in tokens.concepts:
            self.vectors[concept.name] = {
                key: nn.Parameter(_begin(concept, key, table, seed).to(device))
                for key, table in tables.items()
            }

    def __str__(self) -> str:
        """``new words: TOK (2 vectors) in clip_g and clip_l``."""
        named = [
            f"{c.name} ({c.vectors} vector{'s' if c.vectors > 1 else ''})"
            for c in self.tokens.concepts
        ]
        return f"new words: {', '.join(named)} in {' and '.join(sorted(self.std))}"

    def parameters(self) -> dict[str, nn.Parameter]:
        """By ``embeddings.<concept>.<encoder>``."""
        return {
            f"{PREFIX}{name}.{key}": vectors
            for name, by_key in self.vectors.items()
            for key, vectors in by_key.items()
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies on the CPU by ``bundle_emb.<concept>.<encoder>``, as files bundle them with a LoRA."""
        return {
            BUNDLE + name.removeprefix(PREFIX): value.detach().to("cpu", copy=True)
            for name, value in self.parameters().items()
        }

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what ``tensors()`` gave.

        Raises:
            ValueError: A concept is absent, not trained here, or has another number of vectors.
        """
        mine = {BUNDLE + name.removeprefix(PREFIX): p for name, p in self.parameters().items()}
        unlike = sorted(set(mine) ^ set(tensors))
        if unlike:
            where = "state" if unlike[0] in tensors else "settings"
            name = unlike[0].removeprefix(BUNDLE)
            raise ValueError(
                f"The token vectors {name} are in the {where} only; train the same concepts."
            )
        for name, parameter in mine.items():
            if tensors[name].shape != parameter.shape:
                raise ValueError(
                    f"{name.removeprefix(BUNDLE)} has {list(tensors[name].shape)} in the state and "
                    f"{list(parameter.shape)} in the settings; train with the same number of vectors."
                )
            with torch.no_grad():
                parameter.copy_(tensors[name])

    def settle(self) -> None:
        """Draw the vectors to the size of the encoder's words: ``v <- v (std0 / std(v))^retraction``.

        ``std(v)`` is over all new vectors of an encoder together, unbiased, as in diffusers' advanced DreamBooth
        script: without gradients the k-th call leaves ``std0 (std_begin / std0)^((1 - retraction)^k)``.
        """
        if not self.tokens.retraction:
            return
        with torch.no_grad():
            for key, goal in self.std.items():
                own = [by_key[key] for by_key in self.vectors.values()]
                spread = float(torch.cat([v.flatten() for v in own]).std())
                if spread > 0:
                    factor = (goal / spread) ** self.tokens.retraction
                    for vectors in own:
                        vectors.mul_(factor)


def _begin(concept: Concept, key: str, table: Table, seed: int) -> torch.Tensor:
    shape = (concept.vectors, table.width)
    if not concept.init:
        text = f"{seed}/token/{concept.name}/{key}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
        return torch.randn(shape, generator=generator) * table.std
    words = table.words[concept.init].float()
    if not len(words):
        raise ValueError(
            f"The concept {concept.name} is to begin with '{concept.init}', which has no tokens: name a word, or leave "
            "init empty."
        )
    return words[torch.arange(concept.vectors) % len(words)].clone()
