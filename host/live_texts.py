# SPDX-License-Identifier: Apache-2.0
"""Texts that change while they are trained: encoded anew in every step, with gradients to the new words."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..adapters.tokens import BUNDLE, Tokens, TokenVectors
from . import tokens as host_tokens
from .conditioning import Encoded
from .text_trainee import TextTrainee, text_trainee


class LiveTexts:
    """Encodes what names a new word.

    Args:
        vectors: The new words as they are now.
        trained: The text encoders.
    """

    def __init__(self, vectors: TokenVectors, trained: TextTrainee) -> None:
        self.vectors, self._trained = vectors, trained

    def is_live(self, text: str) -> bool:
        """Whether the text names a new word."""
        return bool(self.vectors.tokens.found(text))

    def encode(self, text: str) -> Encoded:
        """Encode a prompt as the words are now, with gradients to them where gradients are on."""
        return self._trained.encode(text, self.vectors.vectors)

    def reload(self) -> None:
        """Load the encoders again, after something else may have evicted them."""
        self._trained.reload()


@contextmanager
def live_texts(
    clip: Any, wanted: Tokens | None, seed: int, trained: Any
) -> Iterator[LiveTexts | None]:
    """The new words of a run while the context lasts.

    Args:
        clip: The CLIP on the wire.
        wanted: The concepts; None where none is trained.
        seed: Of the run.
        trained: The MODEL's trainee, which stays loaded beside the encoders.

    Yields:
        Their texts; None where no concept is trained.
    """
    if wanted is None:
        yield None
        return
    tables = host_tokens.tables(clip, wanted)
    with text_trainee(clip, (trained.patcher,)) as texts:
        yield LiveTexts(TokenVectors(wanted, tables, seed, trained.device), texts)


def learned(clip: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The CLIP with the new words that ``tensors`` bundles; the same CLIP where there are none.

    Args:
        clip: A CLIP; it is not changed.
        tensors: Of an adapter, by key.
    """
    words: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(BUNDLE):
            name, _, encoder = key.removeprefix(BUNDLE).partition(".")
            with torch.inference_mode(False):
                words.setdefault(name, {})[encoder] = value.detach().clone()
    return host_tokens.bind(clip, words) if words else clip
