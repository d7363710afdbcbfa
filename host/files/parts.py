# SPDX-License-Identifier: Apache-2.0
"""A part of an adapter, chosen by the layers of the MODEL that it is for; only the part is read from disk."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...adapters.bottleneck import MARK, is_bottleneck
from ...adapters.file import AdapterFile
from ...adapters.targets import chosen, matching
from ...adapters.tokens import BUNDLE
from ...loaders import alphas, lora_file, renaming
from ...loaders.finite import refuse_not_finite
from ...loaders.source import Source
from . import homes
from .strengths import layer

Choice = Callable[[list[str]], Collection[str]]
CONTENT, STYLE = "output_blocks.0.1", "output_blocks.1.1"
_LISTED = 4
_BLOCKS = 8
_REMEDY = "The training that made it broke: take a file of an earlier step, or make it anew."


@dataclass(frozen=True, eq=False)
class Part:
    """A part of an adapter.

    Attributes:
        file: Its tensors, by the names that the host reads.
        layers: How many layers of the MODEL it has.
        of: How many the whole has.
        places: What the names of its layers stand for, in the host's words.
        homeless: Names of tensors that the MODEL and the CLIP have no layer for.
    """

    file: AdapterFile
    layers: int
    of: int
    places: Mapping[str, Any]
    homeless: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """``80 of 160 layers``, and what of the file has no place."""
        said = f"{self.layers} of {self.of} layers"
        if self.homeless:
            more = " and others" if len(self.homeless) > _LISTED else ""
            said += f" ({len(self.homeless)} tensors have no place here: {', '.join(self.homeless[:_LISTED])}{more})"
        return said


def take(source: Source, model: Any, choice: Choice, clip: Any = None, texts: bool = False) -> Part:
    """Read a part of an adapter.

    Args:
        source: The whole.
        model: The host's ModelPatcher.
        choice: Chooses among the names of the layers that it has.
        clip: The host's CLIP, or None.
        texts: Whether the layers of text encoders and new words are read, too.

    Returns:
        The part.

    Raises:
        ValueError: It was made for another kind of model, nothing of it fits, or it is broken.
    """
    try:
        homes.refuse_other_base(model, source.shapes)
        source = _converted(source)
        known = homes.key_map(model, clip)
        preferred = homes.preferred(known)
        layers, others = _layers(source, known, preferred)
        kept = set(choice(list(dict.fromkeys(layers.values())))) if layers else set[str]()
        wanted = [key for key, of in layers.items() if of in kept]
        homeless = [key for key, has_home in others.items() if not has_home]
        if not layers and not (texts and len(homeless) < len(others)):
            raise ValueError(
                f"None of its {len(source.shapes)} tensors fits {type(model.model).__name__}, for example "
                f"{', '.join(list(source.shapes)[:_LISTED])}. It was made for another kind of model, or is no adapter."
            )
        if texts:
            wanted += [key for key in others if key not in homeless]
        tensors = source.read(wanted)
        refuse_not_finite("It", tensors, _REMEDY)
        renamed = renaming.rename(tensors, source.metadata, preferred)
    except ValueError as error:
        raise ValueError(f"'{source.name}': {error}") from error
    said = {key: value for key, value in source.metadata.items() if key != alphas.CONFIG}
    file = AdapterFile(renamed.tensors, said, source.name)
    places = {name: known[name] for name in renamed.layers}
    return Part(file, len(kept), len(set(layers.values())), places, tuple(homeless))


def placed(source: Source, model: Any, clip: Any = None) -> AdapterFile:
    """All of an adapter; of tensors that have no place here only the shape is known, and none of their bytes is read.

    Args:
        source: The adapter.
        model: The host's ModelPatcher.
        clip: The host's CLIP, or None.

    Returns:
        Its tensors by the file's names, those without a place on the device ``meta``.

    Raises:
        ValueError: It is broken, or has a tensor twice.
    """
    try:
        if _converted(source) is not source:
            wanted = list(source.shapes)
        else:
            preferred = homes.preferred(homes.key_map(model, clip))
            own = {k for k in source.shapes if is_bottleneck(k) or k.startswith(BUNDLE)}
            names = renaming.find([k for k in source.shapes if k not in own], preferred)
            wanted = [k for k in source.shapes if k in own or names[k].layer]
        tensors = source.read(wanted)
    except ValueError as error:
        raise ValueError(f"'{source.name}': {error}") from error
    refuse_not_finite(f"'{source.name}'", tensors, _REMEDY)
    every = {
        name: tensors[name] if name in tensors else torch.empty(shape, device="meta")
        for name, shape in source.shapes.items()
    }
    return AdapterFile(every, dict(source.metadata), source.name)


def blocks(source: Source, model: Any, selection: str, clip: Any, texts: bool) -> Part:
    """The layers that the block language selects, as an adapter to save: its metadata describe it.

    Raises:
        ValueError: As ``take``; a pattern of ``selection`` matches none of its layers.
    """

    def choice(names: list[str]) -> Collection[str]:
        return chosen(names, selection, "blocks") if selection.strip() else names

    part = take(source, model, choice, clip, texts)
    described = {
        key: value for key, value in lora_file.describe(part.file.tensors).items() if value
    }
    metadata = {**part.file.metadata, **described}
    if selection.strip():
        metadata["graft.blocks"] = " ".join(selection.split())
    return replace(part, file=replace(part.file, metadata=metadata))


def layers(source: Source, model: Any) -> list[str]:
    """Names of the MODEL's layers that an adapter changes, by the header alone where the host reads its names.

    Raises:
        ValueError: None of it fits, or it is broken.
    """
    try:
        source = _converted(source)
        known = homes.key_map(model, None)
        found, _ = _layers(source, known, homes.preferred(known))
    except ValueError as error:
        raise ValueError(f"'{source.name}': {error}") from error
    if not found:
        raise ValueError(
            f"'{source.name}' has no layer of this model: it was made for another kind, or is no adapter."
        )
    return list(dict.fromkeys(found.values()))


def b_lora(source: Source, model: Any, block: str, what: str) -> Part:
    """All layers of one of the two blocks of a B-LoRA (Frenkel et al. 2024; arXiv 2403.14572).

    Args:
        source: A B-LoRA, or any other LoRA of SDXL.
        model: The host's ModelPatcher.
        block: ``CONTENT`` or ``STYLE``.
        what: Which of them it is, for messages.

    Raises:
        ValueError: The MODEL or the file has no such block; says which the file has.
    """
    root = model.model.diffusion_model
    if not any(name.startswith(f"{block}.transformer_blocks") for name, _ in root.named_modules()):
        raise ValueError(
            f"{type(model.model).__name__} has no attention in {block}, where a B-LoRA of SDXL keeps its {what}: "
            "connect an SDXL model."
        )

    def choice(names: list[str]) -> Collection[str]:
        if not any(name.startswith(f"{block}.") for name in names):
            raise ValueError(
                f"There is no layer of {block} in it, the {what} of a B-LoRA. It has {in_blocks(names)}."
            )
        return matching(names, block)

    return take(source, model, choice)


def in_blocks(names: list[str]) -> str:
    """``80 layers in output_blocks.0.1``, for each block."""
    counts = Counter(_block(name) for name in names)
    listed = [f"{count} layers in {block}" for block, count in sorted(counts.items())]
    more = f" and {len(listed) - _BLOCKS} more blocks" if len(listed) > _BLOCKS else ""
    return ", ".join(listed[:_BLOCKS]) + more


def _block(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[: 3 if parts[0] in ("input_blocks", "output_blocks") else 2])


def _layers(
    source: Source, known: Mapping[str, Any], preferred: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, bool]]:
    """The MODEL's layer of each tensor that is for one; of the others whether they have a place."""
    layers: dict[str, str] = {}
    others: dict[str, bool] = {}
    plain = [key for key in source.shapes if not is_bottleneck(key) and not key.startswith(BUNDLE)]
    names = renaming.find(plain, preferred)
    for key in source.shapes:
        if key.startswith(BUNDLE):
            others[key] = True
        elif key not in names:
            layers[key] = layer(key.rpartition(MARK)[0])
        elif names[key].layer and (module := layer(known[names[key].layer])):
            layers[key] = module
        else:
            others[key] = bool(names[key].layer)
    return layers, others


def _converted(source: Source) -> Source:
    """As the host converts some programs' files; these are read whole."""
    import comfy.lora_convert

    shapes = {name: torch.empty(shape, device="meta") for name, shape in source.shapes.items()}
    if comfy.lora_convert.convert_lora(shapes) is shapes:
        return source
    made = comfy.lora_convert.convert_lora(source.read(source.shapes))
    whole = {name: tuple(tensor.shape) for name, tensor in made.items()}
    return Source(source.name, source.metadata, whole, lambda names: {n: made[n] for n in names})
