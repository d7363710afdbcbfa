# SPDX-License-Identifier: Apache-2.0
"""Files of new words (textual inversion): of this pack, ComfyUI, kohya, A1111 and diffusers, also old .pt and .bin.

What they hold:

* ``{clip_l, clip_g}``: a matrix for each text encoder; ``text_encoders_0`` and ``_1`` in early scripts of diffusers;
* ``{emb_params}`` (kohya) and ``{string_to_param: {"*": ...}}`` (A1111): one matrix, of an encoder that is not said;
* ``{"<word>": ...}`` (diffusers): a vector or a matrix for each word, of an encoder that is not said;
* ``bundle_emb.<word>.<any of the above>`` beside a LoRA (kohya, ComfyUI, this pack).
"""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..adapters.tokens import BUNDLE
from ..plain import plain
from . import lora_file
from .finite import refuse_not_finite

SUFFIXES = (".safetensors", ".pt", ".bin")
UNSAID = ""  # the word, or the encoder, of vectors of which the file does not say it
Words = dict[str, dict[str, torch.Tensor]]  # [n, width] by word and encoder

_SAFE = ".safetensors"
_ENCODERS = {
    **{key: key for key in ("clip_l", "clip_g", "clip_h", "t5xxl")},
    "text_encoders_0": "clip_l",
    "text_encoders_1": "clip_g",
}
_ALONE = ("emb_params", "string_to_param.*")
_PARAMETERS = "string_to_param"
_MOST_BYTES = 64 << 20  # of an old file, which is read whole; 75 vectors of T5 have 2 MiB
_REMEDY = "The training that made it broke: take a file of an earlier step, or make it anew."


def read(path: Path) -> tuple[Words, str]:
    """Read a file of new words; nothing in it is run.

    Args:
        path: A .safetensors, .pt or .bin file.

    Returns:
        Vectors ``[n, width]`` in fp32 on the CPU by word and encoder, either of which is ``UNSAID`` where the file does
        not say it, and the word that its metadata give for that.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is broken, holds more than tensors, no new words, or values that are no numbers.
    """
    name = plain(path.name)
    if path.suffix.lower() == _SAFE:
        header = lora_file.header(path)
        _refuse_others(name, header.tensors)
        data: Mapping[str, Any] = lora_file.read_some(path, sorted(header.tensors))
        said = header.metadata.get("modelspec.trigger_phrase", "")
    else:
        data, said = _unpacked(path), ""
        _refuse_others(name, data)
    with torch.inference_mode(False):
        words = parse(data)
    if not words:
        raise ValueError(f"'{name}' holds no new words: it has no tensors.")
    for word, by_encoder in words.items():
        refuse_not_finite(
            f"'{name}'", {f"{word}.{key}": v for key, v in by_encoder.items()}, _REMEDY
        )
    return words, said


def bundled(tensors: Mapping[str, torch.Tensor]) -> Words:
    """The new words that an adapter's tensors bundle; those of ``parse`` among them."""
    with torch.inference_mode(False):
        return parse({key: tensors[key] for key in sorted(tensors) if key.startswith(BUNDLE)})


def parse(data: Mapping[str, Any]) -> Words:
    """The new words among what a file holds; other tensors, those of a LoRA for example, are passed over.

    Args:
        data: What the file holds by key: tensors ``[n, width]`` or ``[width]``, or A1111's dictionary.

    Returns:
        Vectors ``[n, width]`` in fp32 by word and encoder.
    """
    if hasattr(data.get(_PARAMETERS), "values"):  # A1111: the rest is settings of its training
        data = {_ALONE[0]: next(iter(data[_PARAMETERS].values()), None)}
    found: Words = {}
    for key, value in data.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim in (1, 2):
            place = _place(key)
            if place is not None:
                word, encoder = place
                vectors = value.detach().reshape(-1, value.shape[-1]).float().clone()
                found.setdefault(word, {})[encoder] = vectors
    return found


def _place(key: str) -> tuple[str, str] | None:
    """Word and encoder of a key; None where it is no new word's."""
    if key.startswith(BUNDLE):
        word, _, encoder = key.removeprefix(BUNDLE).partition(".")
        return word, UNSAID if encoder in _ALONE else _ENCODERS.get(encoder, encoder)
    if key in _ALONE:
        return UNSAID, UNSAID
    if key in _ENCODERS:
        return UNSAID, _ENCODERS[key]
    return None if "." in key else (key, UNSAID)


def _refuse_others(name: str, keys: Iterable[str]) -> None:
    """Refuse a file of which nothing can be a new word, before its tensors are read."""
    listed = sorted(map(str, keys))
    if not any(key == _PARAMETERS or _place(key) for key in listed):
        examples = ", ".join(plain(key, 60) for key in listed[:3]) or "none"
        raise ValueError(
            f"'{name}' holds no new words: none of its {len(listed)} tensors is an embedding's, for example {examples}."
            " Choose a file of textual inversion; a LoRA goes into lora."
        )


def _unpacked(path: Path) -> dict[str, Any]:
    """What an old file holds, read by torch's loader of plain data (``weights_only``)."""
    name, size = plain(path.name), path.stat().st_size
    if size > _MOST_BYTES:
        raise ValueError(
            f"'{name}' has {size >> 20} MiB and is no file of new words: those have a few vectors. Is it a checkpoint?"
        )
    try:
        with torch.inference_mode(False), _old_containers():
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"'{name}' ({size} bytes) is damaged, or holds more than plain vectors: such files can run programs and "
            "are not opened. Get it as .safetensors."
        ) from error
    if not isinstance(data, Mapping):
        raise ValueError(f"'{name}' holds {type(data).__name__} and no vectors by name.")
    return {str(key): value for key, value in data.items()}


def _old_containers() -> contextlib.AbstractContextManager[None]:
    """Lets the loader take the container of vectors of 2022, where torch can (2.5)."""
    allowed = getattr(torch.serialization, "safe_globals", None)
    if allowed is None:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[None] = allowed([torch.nn.ParameterDict])
    return context
