# SPDX-License-Identifier: Apache-2.0
"""A LoRA with the new words that it was trained with, onto a MODEL and a CLIP."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...adapters.file import AdapterFile
from ...adapters.tokens import BUNDLE
from ...loaders import embedding_file
from ...plain import plain
from ..text import words
from . import loading
from .strengths import Strengths


@dataclass(frozen=True, eq=False)
class Loaded:
    """What came of it.

    Attributes:
        model: The MODEL with the LoRA; None for none.
        clip: The CLIP with the LoRA's text encoders and the words.
        trigger: The words as prompts have them, with commas between them.
        report: How much takes effect.
    """

    model: Any
    clip: Any
    trigger: str
    report: str


def load(
    model: Any,
    clip: Any,
    lora: AdapterFile | None,
    embeddings: Path | None,
    word: str,
    strengths: Strengths,
) -> Loaded:
    """Put a LoRA and new words onto clones of a MODEL and a CLIP.

    Args:
        model: The host's ModelPatcher, which is not changed; None where there is no LoRA for it.
        clip: The host's CLIP; likewise.
        lora: A file of any dialect, which may bundle new words; None for none.
        embeddings: A file of new words; None for none.
        word: What to call the words in prompts, with commas between several; empty for their own names.
        strengths: What the LoRA's effect is multiplied by; words have none.

    Returns:
        The patched clones, the words and how much took effect.

    Raises:
        ValueError: There are no words, nothing of a file fits, or the CLIP knows one of the words already.
    """
    found, names = _words(lora, embeddings)
    if not found:
        who = f"'{lora.name}' bundles no new words" if lora else "There is nothing to load"
        raise ValueError(
            f"{who}: choose a file in embeddings, or load a LoRA that has none with Load Adapter."
        )
    called = words.called(found, names, word)
    said: list[str] = []
    layers = {k: t for k, t in lora.tensors.items() if not k.startswith(BUNDLE)} if lora else {}
    if lora and layers:
        if model is None:
            raise ValueError(
                f"'{lora.name}' has {len(layers)} tensors of a LoRA beside its words: connect a MODEL."
            )
        model, clip, report = loading.load(model, clip, replace(lora, tensors=layers), strengths)
        said.append(report)
    clip, told = words.add(clip, called)
    said.append(f"New words: {told}")
    return Loaded(model, clip, ", ".join(called), "\n".join(said))


def _words(lora: AdapterFile | None, embeddings: Path | None) -> tuple[embedding_file.Words, str]:
    """The new words of both files, and what to call one without a name."""
    found = embedding_file.bundled(lora.tensors) if lora else {}
    if embeddings is None:
        return found, ""
    read, said = embedding_file.read(embeddings)
    name = said or plain(embeddings.stem)
    twice = sorted(set(found) & {key or name for key in read})
    if lora and twice:
        raise ValueError(
            f"'{lora.name}' bundles the word {twice[0]}, and '{plain(embeddings.name)}' has one of that name, too: "
            "choose none in embeddings, or load that file with a node of its own and another word."
        )
    return {**found, **read}, name
