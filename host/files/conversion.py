# SPDX-License-Identifier: Apache-2.0
"""An adapter in another dialect, kind of number or rank, saved and read back."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...adapters.file import AdapterFile
from ...adapters.learned import MODEL, TEXT
from ...loaders import lora_file
from ...loaders.finite import refuse_not_finite
from ...loaders.roles import ALPHA
from ...loaders.writing import changes, dialects, magnitudes
from ...loaders.writing import content as contents
from ...loaders.writing.changes import Wish
from ...loaders.writing.content import Content
from ...registry import unknown
from . import paths, result
from .patched_weights import PatchedWeights

DTYPES = {"keep": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_LISTED = 3
_STOCK = (dialects.COMFYUI, dialects.KOHYA, dialects.KOHYA_DIFFUSERS)


@dataclass(frozen=True, eq=False)
class Converted:
    """A converted adapter.

    Attributes:
        written: What the file holds, in its dialect.
        adapter: The same under generic names, for a wire.
        notes: What was made of it, as sentences.
    """

    written: AdapterFile
    adapter: AdapterFile
    notes: tuple[str, ...]


def names_of(model: Any) -> dict[str, str] | None:
    """diffusers' names by a MODEL's own modules, as the host has them; None without a MODEL."""
    import comfy.utils

    if model is None:
        return None
    named = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    found: dict[str, str] = {}
    for theirs, own in named.items():
        # Two names for the layers of SDXL's sizes; add_embedding is what SDXL calls them.
        if theirs.endswith(".weight") and not found.get(own.removesuffix(".weight"), "").startswith(
            "add_"
        ):
            found[own.removesuffix(".weight")] = theirs.removesuffix(".weight")
    return found


def convert(
    file: AdapterFile,
    dialect: str,
    dtype: str = "keep",
    wish: Wish | None = None,
    model: Any = None,
) -> Converted:
    """Spell an adapter in a dialect, with other numbers or ranks where wished.

    Args:
        file: The adapter, in any dialect.
        dialect: One of ``dialects.DIALECTS``.
        dtype: One of ``DTYPES``.
        wish: What every layer is reduced to; None leaves them.
        model: The host's ModelPatcher, for the names of its own layers and the magnitudes of a DoRA, or None.

    Raises:
        ValueError: The dialect cannot hold it, or its tensors are broken; says which.
    """
    remedy = "The training that made it broke: take a file of an earlier step, or make it anew."
    refuse_not_finite(f"'{file.name}'", file.tensors, remedy)
    known = names_of(model)
    content = contents.read(file.tensors, file.metadata, known)
    content.check()
    notes = _left_out(content)
    metadata = dict(file.metadata)
    if any("lora_magnitude_vector" in key for key in file.tensors):
        metadata[magnitudes.FACT] = magnitudes.PLAIN
    if model is not None and dialect != dialects.COMFYUI:
        content, metadata = magnitudes.restored(content, metadata, PatchedWeights(model).layer())
    if (
        "DoRA" in content.whats()
        and dialect in _STOCK
        and metadata.get(magnitudes.FACT) != magnitudes.BY_BASE
    ):
        notes.append(
            "the magnitudes of its DoRA are as trained, which ComfyUI up to today scales by |W| and not |V|"
        )
    if wish is not None:
        content, said = _reduced(content, wish, model)
        notes += said
    if dtype not in DTYPES:
        raise ValueError(unknown("dtype", dtype, DTYPES))
    content = _cast(content, DTYPES[dtype])
    made = dialects.write(content, metadata, dialect, known)
    described = {k: v for k, v in lora_file.describe(content.tensors()).items() if v}
    both = made.metadata | described | {"sshs_model_hash": lora_file.data_hash(made.tensors)}
    own = replace(file, tensors=content.tensors(), metadata=metadata | described)
    return Converted(replace(file, tensors=made.tensors, metadata=both), own, (*notes, *made.notes))


def save(
    made: Converted, filename: str, dialect: str, model: Any = None, **workflow: Any
) -> tuple[Path, str]:
    """Write a converted adapter into the loras folder and read it back.

    Args:
        made: What ``convert`` gave.
        filename: Of the file; the adapter's with the dialect behind it when empty.
        dialect: What it was converted to.
        model: The host's ModelPatcher, to apply what is read back to, or None.
        workflow: ``prompt`` and ``extra_pnginfo`` to embed.

    Returns:
        The file, and how much of it is what it should be.

    Raises:
        ValueError: The name cannot be a file's, or nothing of it fits the model.
        RuntimeError: What was read back is not what was written.
        OSError: The disk is full, or the folder cannot be written.
    """
    short = dialect.replace("(", "").replace(")", "").lower()
    name = paths.safe_name(filename or f"{made.written.name} {short}", "filename")
    saved = result.save_lora(paths.loras_folder() / f"{name}.safetensors", made.written, **workflow)
    back = lora_file.read(saved)
    wrong = [k for k, t in made.written.tensors.items() if not _equal(t, back.tensors.get(k))]
    layers = contents.read(back.tensors, back.metadata, names_of(model))
    if wrong or layers.unknown or layers.doubled:
        first = (wrong or layers.unknown or layers.doubled)[0]
        raise RuntimeError(
            f"'{saved.name}' was not read back as it was written, for example {first}."
        )
    count = len(made.written.tensors)
    said = [
        f"{count} of {count} tensors read back, {len(layers.layers)} layers of {layers.dialect()}"
    ]
    if model is not None:
        generic = {k: t for k, t in layers.tensors().items() if k.startswith(MODEL)}
        said.append(f"On the model: {result.apply(model, generic)[1].text}")
    if dialect not in _STOCK:
        said.append(f"ComfyUI's own Load LoRA does not read {dialect} files of UNets")
    return saved, "\n".join(said)


def _left_out(content: Content) -> list[str]:
    if not (content.layers or content.words or content.bottlenecks):
        some = ", ".join(content.unknown[:_LISTED]) or "none"
        raise ValueError(f"It holds no adapter: none of its tensors is one's, for example {some}.")
    return [
        f"{len(names)} tensors are left out, {what}: {', '.join(names[:_LISTED])}"
        for names, what in (
            (content.unknown, "as they are no adapter's"),
            (content.doubled, "as their layers are there before"),
        )
        if names
    ]


def _reduced(content: Content, wish: Wish, model: Any) -> tuple[Content, list[str]]:
    """The adapter with other ranks, and how much was kept."""
    root = None if model is None else dict(model.model.diffusion_model.named_modules())
    layers, energy, whole, ranks, least, others = {}, 0.0, 0.0, set(), (1.0, ""), []
    for name, roles in content.layers.items():
        if not changes.has_change(roles):
            others.append(name)
            layers[name] = roles
            continue
        module = (root or {}).get(name.removeprefix(MODEL))
        layers[name], kept = changes.reduced(
            name, roles, wish, tuple(getattr(module, "kernel_size", ()))
        )
        energy, whole = energy + kept.energy, whole + kept.whole
        ranks.add(int(layers[name][ALPHA]))
        least = min(least, (kept.share, name))
    if not ranks:
        raise ValueError(
            f"None of its {len(others)} layers has a change that can be reduced without the weight, as LoRA, LoHa, "
            "LoKr and full differences have: leave its rank as it is."
        )
    span = f"{min(ranks)}" if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"
    said = [f"rank {span} keeps {energy / whole if whole else 1.0:.4%} of |dW|^2"]
    if least[1]:
        said[0] += f", the least in {least[1]}: {least[0]:.4%}"
    if others:
        said.append(
            f"{len(others)} layers of {contents.kind(content.layers[others[0]])} keep their form"
        )
    if any(name.startswith(TEXT) for name in others):
        said.append("some of them are of text encoders")
    return replace(content, layers=layers), said


def _cast(content: Content, dtype: torch.dtype | None) -> Content:
    if dtype is None:
        return content

    def cast(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        made = {}
        for role, t in tensors.items():
            fits = t.is_floating_point() and role != ALPHA
            made[role] = t.to(dtype) if fits else t
            if fits and not bool(torch.isfinite(made[role].float()).all()):
                raise ValueError(
                    f"Values of {role} are too large for {dtype}: choose bf16 or fp32."
                )
        return made

    layers = {name: cast(roles) for name, roles in content.layers.items()}
    return replace(
        content, layers=layers, words=cast(content.words), bottlenecks=cast(content.bottlenecks)
    )


def _equal(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and one.dtype == other.dtype and torch.equal(one.cpu(), other)
