# SPDX-License-Identifier: Apache-2.0
"""What a run is: a digest of the model, the dataset and the settings, so that equal runs share a folder."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch

from ...loaders import lora_file
from ...trainers.state import State
from ..model import latents, model_patches
from ..text import tokens
from ..text.labels import LabelEncoder

SAMPLE_BYTES = model_patches.SAMPLE_BYTES


def run_id(model: str, dataset: str, *settings: Any) -> str:
    """The id of a run, 32 hexadecimal digits.

    Args:
        model: Digest of the MODEL on the wire.
        dataset: Digest of pictures and captions.
        settings: Frozen dataclasses and plain values; their ``repr`` counts.
    """
    sha = hashlib.sha256()
    for part in (model, dataset, *map(repr, settings)):
        sha.update(part.encode() + b"\0")
    return sha.hexdigest()[:32]


def begun(state: State | None) -> tuple[int, int, str] | None:
    """What a run depends on of the state that it goes on from: step, length of the plan, and a hash of its weights."""
    if state is None:
        return None
    return state.step, state.total_steps, lora_file.data_hash(state.adapter)


def model_digest(model: Any) -> str:
    """SHA-256 over names, shapes, dtypes and the first 4 KiB of each weight, and over all patches of the wire."""
    sha = hashlib.sha256()
    # A loaded clone may have its patches in the weights; the originals are in the backup.
    backup = getattr(model, "backup", {})
    for name, tensor in sorted(model.model.state_dict().items()):
        _add(sha, name, backup[name].weight if name in backup else tensor)
    for name, patches in sorted(
        getattr(model, "patches", {}).items(), key=lambda pair: str(pair[0])
    ):
        for patch in patches:
            sha.update(f"{name} {patch[0]} {patch[2]}".encode())
            for tensor in _tensors(patch[1]):
                _add(sha, "", tensor)
    for line in model_patches.told(model):
        sha.update(line.encode("utf-8", "surrogatepass"))
    return sha.hexdigest()


def vae_digest(vae: Any, model: Any) -> str:
    """SHA-256 over what latents depend on: the VAE, how it computes, and the MODEL's latent format."""
    network = vae.first_stage_model
    facts = [type(network).__name__, getattr(vae, "vae_dtype", None), _kind(vae)]
    form = latents.form_of(model)
    values = {name: getattr(form, name, None) for name in dir(form) if not name.startswith("_")}
    for name, value in sorted(values.items()):
        if isinstance(value, torch.Tensor):
            facts.append((name, value.tolist()))
        elif value is None or isinstance(value, (bool, int, float, str, list, tuple)):
            facts.append((name, value))
    sha = hashlib.sha256(repr([*map(str, facts), type(form).__name__]).encode())
    sha.update(model_digest(vae.patcher).encode())
    return sha.hexdigest()


def clip_digest(clip: Any) -> str:
    """SHA-256 over what encoded texts depend on: the CLIP with its patches, its layer, its tokenizer and options."""
    if isinstance(clip, LabelEncoder):
        return hashlib.sha256(clip.digest.encode()).hexdigest()
    encoder = clip.cond_stage_model
    options = getattr(clip, "tokenizer_options", {}) or {}
    facts = [
        type(encoder).__qualname__,
        type(clip.tokenizer).__qualname__,
        getattr(clip, "layer_idx", None),
        sorted(options.items(), key=str),
        getattr(clip, "use_clip_schedule", None),
        _kind(clip),
    ]
    sha = hashlib.sha256(repr([*map(str, facts)]).encode())
    sha.update(model_digest(clip.patcher).encode())
    for name, vectors in sorted(tokens.words(clip).items()):
        for key, vector in sorted(vectors.items()):
            _add(sha, f"{name} {key}", vector)
    return sha.hexdigest()


def _kind(wire: Any) -> str:
    """The kind of device that a VAE or CLIP computes on: its roundings are its own."""
    device = getattr(getattr(wire, "patcher", None), "load_device", None)
    return str(getattr(device, "type", device))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "weights"):
        yield from _tensors(value.weights)


def _add(sha: Any, name: str, tensor: torch.Tensor) -> None:
    sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    if type(tensor).__name__ == "QuantizedTensor" or tensor.is_meta or tensor.numel() == 0:
        return
    head = tensor.detach().flatten()[: max(1, SAMPLE_BYTES // tensor.element_size())]
    sha.update(head.contiguous().cpu().view(torch.uint8).numpy().tobytes())
