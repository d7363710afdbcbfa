# SPDX-License-Identifier: Apache-2.0
"""New words that a run begins with: those that a file bundles with its LoRA."""

from collections.abc import Mapping

import torch

from ...adapters.file import AdapterFile
from ...adapters.tokens import Tokens, TokenVectors
from ...loaders.embedding_file import bundled
from ...plain import plain

Words = Mapping[str, Mapping[str, torch.Tensor]]


def choose(file: AdapterFile, tokens: Tokens | None) -> tuple[Words, list[str]]:
    """What of a file's words is trained further.

    Args:
        file: What the run begins with.
        tokens: The concepts that are trained.

    Returns:
        Vectors by the word and the encoder, and what the user should know.
    """
    found, wanted = bundled(file.tensors), tokens.names if tokens else ()
    left = [name for name in found if name not in wanted]
    notes = []
    if left:
        named = plain(", ".join(left), 200)
        notes.append(
            f"Left out of '{file.name}': the new words {named}; a Concept Token of that name trains a word further."
        )
    return {name: vectors for name, vectors in found.items() if name in wanted}, notes


def begin(vectors: TokenVectors | None, chosen: Words) -> str:
    """Put the words into what is trained.

    Args:
        vectors: What is trained.
        chosen: What ``choose`` gave.

    Returns:
        A sentence on it, empty for no words.

    Raises:
        ValueError: A word has other encoders or another number of vectors.
    """
    if vectors is None or not chosen:
        return ""
    for name, by_encoder in chosen.items():
        own = vectors.vectors[name]
        came = {key: list(value.shape) for key, value in by_encoder.items()}
        wanted = {key: list(value.shape) for key, value in own.items()}
        if came != wanted:
            raise ValueError(
                f"The word {name} is {came} in the file and {wanted} in the Concept Token: set vectors to that of the "
                "file, and take a CLIP of its kind."
            )
        with torch.no_grad():
            for key, value in by_encoder.items():
                own[key].copy_(value)
    return f"the words {', '.join(chosen)} begin as they are in it"
