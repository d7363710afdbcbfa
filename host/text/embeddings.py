# SPDX-License-Identifier: Apache-2.0
"""Files of new words: one safetensors file a concept, with a matrix for each text encoder (``clip_l``, ``clip_g``).

ComfyUI's ``embedding:name``, A1111 and kohya read them.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from ...adapters.file import AdapterFile
from ...loaders import embedding_file, lora_file
from ..files import paths

SUFFIX = ".safetensors"
_TRIGGER = "modelspec.trigger_phrase"
ALONE = "emb_params"  # what A1111 reads the vectors of a single encoder by; ComfyUI takes the only ones there are


def register() -> Path:
    """Register ``output/embeddings``, so that prompts find its files with every CLIP that is loaded from now on."""
    import folder_paths

    folder = paths.output_folder() / "embeddings"
    known = [os.path.realpath(path) for path in folder_paths.get_folder_paths("embeddings")]
    if os.path.realpath(folder) not in known:
        folder_paths.add_model_folder_path("embeddings", str(folder))
    return folder


def save(adapter: AdapterFile, filename: str = "") -> list[Path]:
    """Write the new words of an adapter.

    Args:
        adapter: What a training made.
        filename: Name of the files, to which the words' names are added where there are several; the words' own when
            empty.

    Returns:
        The files.

    Raises:
        ValueError: The adapter has no new words, or the name cannot be a file's.
        OSError: The disk is full, or the folder cannot be written.
    """
    found = embedding_file.bundled(adapter.tensors)
    if not found:
        raise ValueError(
            f"'{adapter.name}' has no new words to save: connect a Concept Token to tokens of the training node, or "
            "save its LoRA with Save LoRA."
        )
    folder, saved = register(), []
    folder.mkdir(parents=True, exist_ok=True)
    for name, by_encoder in found.items():
        several = f"{filename}_{name}" if len(found) > 1 else filename
        stem = paths.safe_name(several.removesuffix(SUFFIX) if filename else name, "filename")
        metadata = {**adapter.metadata, _TRIGGER: name}
        saved.append(_write(folder, stem, by_encoder, metadata))
    return saved


def _write(
    folder: Path, stem: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> Path:
    named = {
        key: value for key, value in metadata.items() if key == _TRIGGER or key.startswith("graft.")
    }
    if len(tensors) == 1:
        tensors = dict(zip((ALONE,), tensors.values(), strict=True))
    return paths.write_once(
        folder, stem, SUFFIX, lambda path: lora_file.write(path, tensors, named)
    )
