# SPDX-License-Identifier: Apache-2.0
"""New words in the text encoders of a CLIP: a CLIP of its own knows them, and nothing global does.

A copy of the CLIP's tokenizers puts the vectors of a concept where its name stands, in the way of the host's
``embedding:`` syntax: weights, line breaks and long prompts are the host's. The vectors may require gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...adapters.tokens import Table, Tokens, pattern

_MARK = "graft_token_"
_SYNTAX = f"embedding:{_MARK}"
_KNOWN = "graft_concepts"  # of a bound tokenizer: the one that it was made of, and the vectors
LAYER = "CLIPLayer"  # encoders of these carry a gradient to their input


@dataclass(frozen=True, eq=False)
class Encoder:
    """A text encoder with its tokenizer.

    Attributes:
        key: ``clip_l``, ``clip_g``: what files call it.
        name: The attribute that it is in CLIP's tokenizer and model.
        tokenizer: The host's.
        model: The host's.
    """

    key: str
    name: str
    tokenizer: Any
    model: Any

    @property
    def is_trainable(self) -> bool:
        """Whether new words of it can be learned."""
        return is_clip(self.model)

    @property
    def table(self) -> torch.Tensor:
        """Vectors of its words ``[vocabulary, width]``."""
        weight: torch.Tensor = self.model.transformer.get_input_embeddings().weight
        return weight


def is_clip(model: Any) -> bool:
    """Whether an encoder is a CLIP, and not T5 or a language model."""
    return any(type(m).__name__ == LAYER for m in model.modules())


def encoders(clip: Any) -> dict[str, Encoder]:
    """The text encoders of a CLIP whose tokenizer takes vectors in the place of words, by key."""
    found = {}
    for name, tokenizer in vars(clip.tokenizer).items():
        model = getattr(clip.cond_stage_model, name, None)
        if hasattr(tokenizer, "_try_get_embedding") and hasattr(model, "transformer"):
            found[tokenizer.embedding_key] = Encoder(
                tokenizer.embedding_key, name, tokenizer, model
            )
    return found


def trainable(clip: Any) -> dict[str, Encoder]:
    """Those of ``encoders`` that can learn new words.

    Raises:
        ValueError: There are none.
    """
    every = encoders(clip)
    able = {key: encoder for key, encoder in every.items() if encoder.is_trainable}
    if not able:
        name = type(clip.cond_stage_model).__name__.rstrip("_")
        raise ValueError(
            f"The CLIP ({name}) has no text encoder that can learn new words ({', '.join(every) or 'none'} of it takes "
            "vectors); CLIP L and CLIP G can. Train a LoRA instead."
        )
    return able


def tables(clip: Any, tokens: Tokens) -> dict[str, Table]:
    """What the words of a CLIP's encoders are like.

    Args:
        clip: A CLIP.
        tokens: The concepts, whose words to begin with are looked up.

    Returns:
        One for each encoder that can learn new words, on the CPU.

    Raises:
        ValueError: No encoder can.
    """
    return {key: _table(encoder, tokens) for key, encoder in trainable(clip).items()}


def words(clip: Any) -> dict[str, Mapping[str, torch.Tensor]]:
    """The new words that a CLIP knows: ``[n, width]`` by name and encoder."""
    return dict(getattr(clip.tokenizer, _KNOWN, (None, {}))[1])


def bind(clip: Any, vectors: Mapping[str, Mapping[str, torch.Tensor]]) -> Any:
    """A CLIP that knows concepts; the given one does not change.

    Args:
        clip: A CLIP.
        vectors: ``[n, width]`` by the concept's name and the encoder's key. In an encoder that has none for a
            concept, its name is left out of the text.

    Returns:
        A clone with tokenizers of its own. What the CLIP knew already it knows still, but for a concept of the same
        name.
    """
    base, _ = getattr(clip.tokenizer, _KNOWN, (clip.tokenizer, {}))
    known = {**words(clip), **vectors}
    bound = clip.clone()
    bound.tokenizer = _tokenizer(base, known)
    setattr(bound.tokenizer, _KNOWN, (base, known))
    return bound


def _tokenizer(tokenizer: Any, vectors: Mapping[str, Mapping[str, torch.Tensor]]) -> Any:
    made, find = copy.copy(tokenizer), pattern(list(vectors))
    for name, part in vars(tokenizer).items():
        if hasattr(part, "_try_get_embedding"):
            own = {concept: by_key.get(part.embedding_key) for concept, by_key in vectors.items()}
            setattr(made, name, _knowing(part, own))
    tokenize = made.tokenize_with_weights

    def tokenize_with_weights(text: str, *args: Any, **kwargs: Any) -> Any:
        marked = find.sub(lambda match: f" {_SYNTAX}{match[0]} ", text)
        return tokenize(marked, *args, **kwargs)

    made.tokenize_with_weights = tokenize_with_weights
    return made


def _knowing(part: Any, vectors: Mapping[str, torch.Tensor | None]) -> Any:
    """A copy of one encoder's tokenizer that looks into ``vectors`` before it looks for files."""
    made = copy.copy(part)
    if made.embedding_directory is None:
        made.embedding_directory = []
    size = len(_probe(made))
    look_up = made._try_get_embedding
    nothing = torch.empty(0, made.embedding_size)

    def try_get_embedding(embedding_name: str) -> Any:
        first, _, rest = embedding_name.strip().partition(" ")
        concept = first.removeprefix(_MARK)
        if not first.startswith(_MARK) or concept not in vectors:
            return look_up(embedding_name)
        found = vectors[concept]
        found = nothing if found is None else found
        # Newer hosts have the name between the two.
        return (found, first, rest) if size == 3 else (found, rest)

    made._try_get_embedding = try_get_embedding
    return made


def _probe(part: Any) -> tuple[Any, ...]:
    """What the host's look-up of a file gives; it looks nowhere."""
    blind = copy.copy(part)
    blind.embedding_directory = []
    found: tuple[Any, ...] = blind._try_get_embedding("graft")
    return found


def _table(encoder: Encoder, tokens: Tokens) -> Table:
    table = encoder.table
    with torch.inference_mode(False), torch.no_grad():
        rows = {
            concept.init: table[_ids(encoder.tokenizer, concept.init)].to(
                "cpu", torch.float32, copy=True
            )
            for concept in tokens.concepts
            if concept.init
        }
        std = float(table.float().std())
    return Table(int(table.shape[1]), std, rows)


def _ids(tokenizer: Any, words: str) -> list[int]:
    end = -1 if tokenizer.tokenizer_adds_end_token else None
    ids: list[int] = tokenizer.tokenizer(words)["input_ids"][tokenizer.tokens_start : end]
    return ids
