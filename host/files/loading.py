# SPDX-License-Identifier: Apache-2.0
"""Loads what a training made, of any kind, onto a MODEL and a CLIP."""

from collections.abc import Mapping
from typing import Any

from ...adapters.file import AdapterFile
from ...adapters.learned import TEXT
from ...loaders import embedding_file
from ...loaders.source import Source
from ..model.bottlenecks import ALWAYS
from ..model.limits import Limits
from ..text import words
from . import homes, parts, result
from .strengths import Strengths

_OF_TEXT = (TEXT, "lora_te", "text_encoder")


def load(
    model: Any,
    clip: Any,
    file: AdapterFile,
    strengths: Strengths,
    places: Mapping[str, Any] | None = None,
    limits: Limits = ALWAYS,
) -> tuple[Any, Any, str]:
    """Put an adapter onto clones of a MODEL and a CLIP.

    Args:
        model: The host's ModelPatcher; it is not changed.
        clip: The host's CLIP, or None; likewise.
        file: What a training made, or a file of any dialect that the host reads.
        strengths: What its effect is multiplied by; new words have none.
        places: What the names of its layers stand for, where that is known already.
        limits: When and where in the picture it counts.

    Returns:
        The patched clones (None for a None), and how much took effect.

    Raises:
        ValueError: Nothing of it fits, a pattern of ``strengths`` matches no layer of it, or it cannot be limited so.
    """
    found = embedding_file.bundled(file.tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    try:
        homes.refuse_other_base(model, shapes)
        patched, patched_clip, report = result.apply_both(
            model, clip, file.tensors, strengths, file.metadata, places, limits
        )
    except ValueError as error:
        raise ValueError(f"'{file.name}': {error}{_missing(clip, file)}") from error
    if found and clip is None and not report.total:
        raise ValueError(
            f"'{file.name}' has nothing but the new words {', '.join(found)}: connect a CLIP."
        )
    said = [report.text, report.how] if report.total else []
    if found and clip is not None:
        patched_clip, told = words.add(patched_clip, found)
        said.append(f"new words: {told}")
    elif found:
        said.append(f"The new words {', '.join(found)} need a CLIP, which is not connected")
    if not report.complete:
        said.append(_missing(clip, file).strip())
    return patched, patched_clip, f"'{file.name}': {'. '.join(filter(None, said))}"


def _missing(clip: Any, file: AdapterFile) -> str:
    has_text = any(key.startswith(_OF_TEXT) for key in file.tensors)
    return " Connect a CLIP for its text encoders." if has_text and clip is None else ""


def blocks(
    model: Any, clip: Any, source: Source, selection: str, strengths: Strengths
) -> tuple[Any, Any, AdapterFile, str]:
    """Put some layers of an adapter onto clones of a MODEL and a CLIP; only these are read.

    Args:
        model: The host's ModelPatcher; it is not changed.
        clip: The host's CLIP, or None; likewise. Text encoders and new words are taken where it is there and its
            strength is not 0.
        source: The adapter.
        selection: Presets and patterns; all layers where it is empty.
        strengths: What their effect is multiplied by.

    Returns:
        The patched clones (None for a None), the chosen layers as an adapter, and how much took effect.

    Raises:
        ValueError: Nothing of it fits, or a pattern matches no layer of it.
    """
    part = parts.blocks(source, model, selection, clip, clip is not None and strengths.clip != 0)
    patched, patched_clip, report = load(model, clip, part.file, strengths, part.places)
    return patched, patched_clip, part.file, f"{report}; {part.text}"


def b_loras(
    model: Any, wanted: Mapping[str, tuple[Source | None, float]], is_squared: bool
) -> tuple[Any, str]:
    """Put the content of one B-LoRA and the style of another onto a clone of a MODEL.

    Args:
        model: The host's ModelPatcher; it is not changed.
        wanted: By ``content`` and ``style``, the adapter (None for none) and its strength.
        is_squared: Whether strengths act twice: the reference multiplies both halves of every LoRA by them.

    Returns:
        The patched clone, and how much took effect.

    Raises:
        ValueError: There is none, or one of them has no such block.
    """
    if all(source is None for source, _ in wanted.values()):
        raise ValueError(
            "There is nothing to load: choose a file for the content, the style or both."
        )
    said = []
    for what, block in (("content", parts.CONTENT), ("style", parts.STYLE)):
        source, strength = wanted[what]
        if source is None:
            continue
        part = parts.b_lora(source, model, block, what)
        strength *= strength if is_squared else 1.0
        model, _, report = load(model, None, part.file, Strengths(strength), part.places)
        said.append(f"{what} of {report}; {part.text}, dW times {strength:g}")
    return model, "\n".join(said)
