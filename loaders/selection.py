# SPDX-License-Identifier: Apache-2.0
"""A part of a trained adapter, chosen by the block language: one training, several files."""

from dataclasses import replace

from ..adapters.file import AdapterFile
from ..adapters.learned import MODEL
from ..adapters.targets import chosen
from . import lora_file

_FACT = "graft.blocks"


def select(adapter: AdapterFile, blocks: str) -> AdapterFile:
    """Keep the layers of the model that ``blocks`` selects, whole and bit for bit; nothing else.

    Layers of text encoders and new words belong to no block of the model: they are left out.

    Args:
        adapter: What was trained.
        blocks: Presets and patterns; all of it, words and text encoders too, where it is empty.

    Returns:
        The part. Its metadata say which it is, and describe its own tensors.

    Raises:
        ValueError: No trained layer of the model is selected; lists near names.
    """
    if not blocks.strip():
        return adapter
    layers = {key: _layer(key) for key in adapter.tensors if key.startswith(MODEL)}
    if not layers:
        raise ValueError(
            f"blocks is '{blocks.strip()}', but no tensor of the adapter '{adapter.name}' is called {MODEL}<layer>: it "
            "has no layers of the model, or comes from a file that names them otherwise. Leave blocks empty."
        )
    kept = set(chosen(list(dict.fromkeys(layers.values())), blocks, "blocks"))
    tensors = {key: adapter.tensors[key] for key, layer in layers.items() if layer in kept}
    described = {key: value for key, value in lora_file.describe(tensors).items() if value}
    metadata = {**adapter.metadata, **described, _FACT: " ".join(blocks.split())}
    return replace(adapter, tensors=tensors, metadata=metadata)


def _layer(key: str) -> str:
    """The module's name: ``diffusion_model.<module>.lora_up.weight``, ``....alpha``, ``....hada_w1_a``."""
    name = key.removeprefix(MODEL).removesuffix(".weight")
    return name.rpartition(".")[0]
