# SPDX-License-Identifier: Apache-2.0
"""Loads what a training made, of any kind, onto a MODEL and a CLIP."""

from typing import Any

from ...adapters.file import AdapterFile
from ...adapters.learned import TEXT
from ..text import embeddings
from ..text.live_texts import with_words
from . import result
from .strengths import Strengths

_OF_TEXT = (TEXT, "lora_te", "text_encoder")


def load(model: Any, clip: Any, file: AdapterFile, strengths: Strengths) -> tuple[Any, Any, str]:
    """Put an adapter onto clones of a MODEL and a CLIP.

    Args:
        model: The host's ModelPatcher; it is not changed.
        clip: The host's CLIP, or None; likewise.
        file: What a training made, or a file of any dialect that the host reads.
        strengths: What its effect is multiplied by; new words have none.

    Returns:
        The patched clones (None for a None), and how much took effect.

    Raises:
        ValueError: Nothing of it fits, or a pattern of ``strengths`` matches no layer of it.
    """
    words = embeddings.words(file.tensors)
    try:
        patched, patched_clip, report = result.apply_both(model, clip, file.tensors, strengths)
    except ValueError as error:
        raise ValueError(f"'{file.name}': {error}{_missing(clip, file)}") from error
    if words and clip is None and not report.total:
        raise ValueError(
            f"'{file.name}' has nothing but the new words {', '.join(words)}: connect a CLIP."
        )
    said = [report.text] if report.total else []
    if words and clip is not None:
        patched_clip = with_words(patched_clip, file.tensors)
        said.append(f"new words: {', '.join(words)}")
    elif words:
        said.append(f"The new words {', '.join(words)} need a CLIP, which is not connected")
    if not report.complete:
        said.append(_missing(clip, file).strip())
    return patched, patched_clip, f"'{file.name}': {'. '.join(filter(None, said))}"


def _missing(clip: Any, file: AdapterFile) -> str:
    has_text = any(key.startswith(_OF_TEXT) for key in file.tensors)
    return " Connect a CLIP for its text encoders." if has_text and clip is None else ""
