# SPDX-License-Identifier: Apache-2.0
"""What an adapter changes, layer by layer: as a pair where it is a LoRA, else as dW of the weight on the wire."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...adapters.bottleneck import is_bottleneck
from ...adapters.file import AdapterFile
from ...adapters.learned import MODEL, TEXT
from ...adapters.pair import Pair
from ...adapters.targets import kind
from ...adapters.tokens import BUNDLE
from ...loaders import dialects, renaming
from ...loaders.roles import DOWN, MID, UP
from ...plain import some
from ..files import dora, fitting_shapes, homes, result, start
from ..files.patched_weights import weight_of

_WEIGHT, _BIAS = ".weight", ".bias"
Patch = tuple[Any, Any, Any]  # what the host's loader made, offset, function


@dataclass(frozen=True, eq=False)
class Changes:
    """One adapter.

    Attributes:
        name: Its own.
        pairs: Changes of low rank by the layer's name in files.
        patches: Others by the weight's name.
        shapes: Of ``down`` without the rank, by the layer's name.
        words: New words, as a file has them.
        notes: What the user should know.
    """

    name: str
    pairs: Mapping[str, Pair]
    patches: Mapping[str, list[Patch]] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    words: Mapping[str, torch.Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> list[str]:
        """Names of all layers, a bias's with ``.bias``."""
        dense = [key.removesuffix(_WEIGHT) for key in self.patches]
        return list(dict.fromkeys([*self.pairs, *dense]))

    def of(self, layer: str, model: Any) -> Pair | torch.Tensor | None:
        """The change of one layer; dW has the weight's shape."""
        if layer in self.pairs:
            return self.pairs[layer]
        key = layer if layer in self.patches else f"{layer}{_WEIGHT}"
        return dense(model, key, self.patches[key]) if key in self.patches else None


def read(file: AdapterFile, model: Any, clip: Any, takes_any: bool) -> Changes:
    """Find what an adapter changes.

    Args:
        file: Of any dialect.
        model: The MODEL it is for; None takes the file's own names, and plain LoRAs alone.
        clip: Its CLIP, or None; likewise for the text encoders.
        takes_any: Whether changes of other kinds than LoRA can be merged.

    Raises:
        ValueError: It has nothing to merge, or something that cannot be.
    """
    import comfy.lora_convert

    if any(map(is_bottleneck, file.tensors)):
        raise ValueError(
            f"'{file.name}' has bottleneck adapters, which are no changes of weights: use it beside the merged one, "
            "with Load Adapter."
        )
    words = {k: t.detach().clone() for k, t in file.tensors.items() if k.startswith(BUNDLE)}
    tensors = comfy.lora_convert.convert_lora(result.of_model(file.tensors))
    own = _own_places(tensors)
    places = {name: p for name, p in own.items() if model is None or dialects.is_text(name)}
    places |= _places(model) if model is not None else {}
    places |= _text_places(clip) if clip is not None else {}
    try:
        found = dialects.read(tensors, file.metadata, places)
    except ValueError as error:
        raise ValueError(f"'{file.name}': {error}") from error
    others = [*found.other, *found.text]
    patches, notes = dict[str, list[Patch]](), []
    if others:
        _check_others(file, others, model, takes_any)
        patches, lost, misfits = _patches(file, {key: tensors[key] for key in others}, model)
        notes += _notes(file, "tensors have no place in this model", lost)
        found.misshapen += misfits
    notes += _notes(file, "layers have no place in this model", found.homeless)
    notes += _notes(file, "layers have another shape", found.misshapen)
    if not found.pairs and not patches and not words:
        raise ValueError(
            f"'{file.name}' has nothing to merge{'' if model is None else f' into {type(model.model).__name__}'}: "
            f"{'; '.join(notes) or some(list(file.tensors)) or 'it is empty'}."
        )
    shapes = {own[name].module: _columns(tensors, name) for name in own}
    shapes |= _shapes(model) if model is not None else {}
    return Changes(file.name, found.pairs, patches, shapes, words, tuple(notes))


def dense(model: Any, key: str, patches: list[Patch]) -> torch.Tensor:
    """dW of a weight, as the host's loader would change it at strength 1, in fp32 on the CPU."""
    import comfy.lora

    base = weight_of(model, key)
    listed = [(1.0, patch, 1.0, offset, function) for patch, offset, function in patches]
    changed: torch.Tensor = comfy.lora.calculate_weight(listed, base.clone(), key)
    return (changed - base).float()


def _own_places(tensors: Mapping[str, torch.Tensor]) -> dict[str, dialects.Place]:
    """Every LoRA layer of a file as what its own name says."""
    made = {}
    for name, keys in dialects.layers(tensors).items():
        if {UP, DOWN} <= set(keys):
            columns = torch.Size(_columns(tensors, name)).numel()
            made[name] = dialects.Place(name, (int(tensors[keys[UP]].shape[0]), columns))
    return made


def _columns(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...]:
    """Input channels and kernel of a LoRA layer."""
    keys = dialects.layers([key for key in tensors if key.startswith(name)])[name]
    shape = tuple(tensors[keys[DOWN]].shape[1:])
    return (*shape[:1], *tensors[keys[MID]].shape[2:]) if MID in keys else shape


def _places(model: Any) -> dict[str, dialects.Place]:
    return {
        name: replace(place, module=MODEL + place.module)
        for name, place in start.places(model).items()
    }


def _text_places(clip: Any) -> dict[str, dialects.Place]:
    """What names in files stand for in the text encoders."""
    import comfy.lora

    root = clip.cond_stage_model
    made = {}
    for name, key in comfy.lora.model_lora_keys_clip(root, {}).items():
        module = key.removesuffix(_WEIGHT) if isinstance(key, str) else ""
        try:
            weight = root.get_submodule(module).weight
        except AttributeError:
            continue
        if module and weight.ndim > 1:
            shape = (len(weight), weight[0].numel())
            made[name] = dialects.Place(TEXT + module, shape)
    return made


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    made: dict[str, tuple[int, ...]] = {}
    for name, module in model.model.diffusion_model.named_modules():
        if kind(module) == "linear":
            made[MODEL + name] = (module.in_features,)
        elif kind(module) == "conv":
            made[MODEL + name] = (module.in_channels // module.groups, *module.kernel_size)
    return made


def _check_others(file: AdapterFile, others: list[str], model: Any, takes_any: bool) -> None:
    is_dora = any(key.endswith(("dora_scale", "magnitude_vector", ".weight_m")) for key in others)
    what = (
        "is a DoRA, whose magnitudes" if is_dora else "has changes of another kind than LoRA, which"
    )
    if not takes_any:
        raise ValueError(
            f"'{file.name}' {what} cannot be merged in this mode ({some(others)}): choose 'sum', and connect "
            "the MODEL."
        )
    if model is None:
        raise ValueError(
            f"'{file.name}' {what} can only be merged into the weights they are for ({some(others)}): connect the "
            "MODEL."
        )
    texts = [key for key in others if dialects.is_text(key)]
    if texts:
        raise ValueError(
            f"'{file.name}' changes text encoders otherwise than as a LoRA, and such changes cannot be merged: "
            f"{some(texts)}."
        )


def _patches(
    file: AdapterFile, tensors: Mapping[str, torch.Tensor], model: Any
) -> tuple[dict[str, list[Patch]], list[str], list[str]]:
    """What the host's loader makes of tensors, by the weight's name; those that have no place, and other shapes."""
    import comfy.lora

    known = homes.key_map(model)
    plain = {key: t.clone() if t.is_inference() else t for key, t in tensors.items()}
    try:
        renamed = renaming.rename(plain, file.metadata, homes.preferred(known))
    except ValueError as error:
        raise ValueError(f"'{file.name}': {error}") from error
    key_map = {layer: known[layer] for layer in renamed.layers}
    loaded: dict[Any, Any] = comfy.lora.load_lora(renamed.tensors, key_map, log_missing=False)
    weights = model.model.state_dict()
    fitting = {at: one for at, one in loaded.items() if fitting_shapes.fits(one, at, weights)}
    made: dict[str, list[Patch]] = {}
    for at, patch in dora.exact(fitting, file.metadata).items():
        key, *rest = (at,) if isinstance(at, str) else at
        offset, function = (*rest, None, None)[:2]
        made.setdefault(key, []).append((patch, offset, function))
    taken = tuple(
        f"{prefix}." for prefix, at in key_map.items() if at in loaded or _bias_of(at) in loaded
    )
    lost = [key for name, key in renamed.origins.items() if not name.startswith(taken)]
    return made, lost, list(fitting_shapes.told(loaded, fitting, weights))


def _bias_of(at: Any) -> str:
    key: str = at if isinstance(at, str) else at[0]
    return f"{key.removesuffix(_WEIGHT)}{_BIAS}"


def _notes(file: AdapterFile, what: str, names: list[str]) -> list[str]:
    return [f"left out of '{file.name}': {len(names)} {what} ({some(names)})"] if names else []
