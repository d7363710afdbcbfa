# SPDX-License-Identifier: Apache-2.0
"""What a run hands back: LORA_MODEL, the patched MODEL and CLIP, the file, and a check of it.

All loading goes through ComfyUI's own LoRA code, so what is counted here is what users get.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...adapters.bottleneck import is_bottleneck
from ...adapters.file import AdapterFile
from ...adapters.tokens import BUNDLE
from ...loaders import lora_file, renaming
from ...plain import percent, some
from ..model import bottlenecks
from ..model.limits import Limits
from . import dora, fitting_shapes, homes, oft, paths, putting
from .relative_change import relative_change
from .strengths import WHOLE, Strengths

_LISTED = 8
# ComfyUI's configuration class: (modelspec.architecture, modelspec.implementation,
# ss_base_model_version). Other classes have no agreed name, so none is written.
_STABILITY = "https://github.com/Stability-AI/generative-models"
_FAMILIES = {
    "SD15": ("stable-diffusion-v1", _STABILITY, "sd_v1"),
    "SD20": ("stable-diffusion-v2-512", _STABILITY, "sd_v2"),
    "SDXL": ("stable-diffusion-xl-v1-base", _STABILITY, "sdxl_base_v1-0"),
    "Flux": ("flux-1-dev", "https://github.com/black-forest-labs/flux", "flux1"),
    "FluxSchnell": ("flux-1-schnell", "https://github.com/black-forest-labs/flux", "flux1"),
}
_PREDICTIONS = {"EPS": "epsilon", "V_PREDICTION": "v"}


@dataclass(frozen=True)
class Report:
    """How much of a LoRA took effect.

    ``unmatched`` are keys that the model has no place for, ``misshapen`` those whose shape is
    another than their place's; ``shapes`` are their layers with both. ``relative_change`` is |dW| / |W| over the
    touched weights (Frobenius norms), None where the weights cannot be read. ``own`` of all are bottleneck adapters'.
    ``how`` it was done, and what it costs.
    """

    applied: int
    total: int
    unmatched: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    relative_change: float | None = None
    own: int = 0
    how: str = ""
    shapes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every tensor was applied."""
        return self.applied == self.total

    @property
    def text(self) -> str:
        """``704 of 704 tensors applied, |dW| = 3.1 % of |W|``, and what was not applied and why; nothing for none."""
        if not self.total:
            return ""
        parts = [f"{self.applied} of {self.total} tensors applied"]
        if self.relative_change is not None:
            parts.append(f"|dW| = {percent(self.relative_change)} of |W|")
        said = ", ".join(parts)
        if self.unmatched:
            said += f". The model has no place for {some(sorted(self.unmatched), _LISTED)}"
        if self.misshapen:
            said += f". Another shape than the model's: {some(sorted(self.shapes or self.misshapen), _LISTED)}"
        if self.own:
            which = "all" if self.own == self.total else f"{self.own}"
            said += f". Bottleneck adapters: {which} of them; Load Adapter loads these, ComfyUI's Load LoRA does not"
        return said


def lora_state_dict(source: Any) -> dict[str, torch.Tensor]:
    """The dict that core's LORA_MODEL wires carry: contiguous copies on the CPU.

    Args:
        source: An ``AdapterFile``, what ``attach`` gave, or a mapping of tensors by ComfyUI's
            generic names, ``diffusion_model.<module>.lora_up.weight`` and so on.

    Returns:
        Tensors by the same names, none of them an inference tensor, without those of new words and of bottleneck
        adapters, which core cannot load.
    """
    tensors = source if isinstance(source, Mapping) else source.tensors
    if callable(tensors):
        tensors = tensors()
    tensors = of_model(tensors)
    with torch.inference_mode(False), torch.no_grad():
        return {
            key: tensor.detach().to("cpu", copy=True).contiguous()
            for key, tensor in sorted(tensors.items())
        }


def of_model(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of an adapter's tensors that the host's LoRA code is for: no new word's, no bottleneck adapter's."""
    return {
        key: value
        for key, value in tensors.items()
        if not key.startswith(BUNDLE) and not is_bottleneck(key)
    }


def apply(model: Any, lora: Mapping[str, torch.Tensor]) -> tuple[Any, Report]:
    """Clone a MODEL and patch it with a LoRA as the stock loader does.

    Args:
        model: The host's ModelPatcher; it is not changed.
        lora: Tensors by key, in any dialect that the host reads.

    Returns:
        The patched clone, and how much took effect.

    Raises:
        ValueError: Not one tensor fits the model.
    """
    patched, _, report = apply_both(model, None, lora)
    return patched, report


def apply_both(
    model: Any,
    clip: Any,
    lora: Mapping[str, torch.Tensor],
    strengths: Strengths = WHOLE,
    metadata: Mapping[str, str] | None = None,
    places: Mapping[str, Any] | None = None,
    limits: Limits = bottlenecks.ALWAYS,
) -> tuple[Any, Any, Report]:
    """Clone a MODEL and a CLIP and patch both as the stock loader does; bottleneck adapters are put in by our own code.

    Args:
        model: The host's ModelPatcher; it is not changed.
        clip: The host's CLIP, None when the LoRA is for the model alone.
        lora: Tensors by key, in any dialect that the host reads.
        strengths: What their effect is multiplied by.
        metadata: The file's, with which dialects and a DoRA's magnitudes are read that the stock loader does not; None
            to do nothing but what that does.
        places: What the names of its layers stand for, where that is known already.
        limits: When and where in the picture it counts; what is limited is not merged.

    Returns:
        The patched clones (None for a None), and how much took effect.

    Raises:
        ValueError: Not one tensor fits, or it cannot be limited so.
    """
    lora, given = of_model(lora), lora
    own = bottlenecks.find(model, given)
    if given and not lora and not own.total:  # new words only
        return model.clone(), clip and clip.clone(), Report(0, 0)
    with torch.inference_mode(False), torch.no_grad():
        record, key_map, loaded = _load(lora, model, clip, metadata, places)
        weights = _weights(model, clip)
        fitting = _fitting(loaded, weights, metadata)
        placed = putting.put(model, clip, fitting, own, strengths, limits)
        kept = placed.taken | placed.left
        unmatched, misshapen = _lost(record, key_map, loaded, fitting, kept)
        left = record.of_file(record.keys_of(p for p, at in key_map.items() if at in placed.left))
        shapes = (*fitting_shapes.told(loaded, fitting, weights), *own.misshapen)
        total = len(record.of_file(record)) + own.total
        applied = total - own.total - len(unmatched | misshapen | left) + own.applied
        if applied <= 0:
            examples = sorted(shapes or [*record, *own.unmatched])
            raise ValueError(_none_fits(model, total, examples, own))
        change = relative_change({k: fitting[k] for k in placed.taken}, weights, model, clip)
    unplaced = tuple(sorted([*unmatched, *own.unmatched]))
    others = tuple(sorted([*misshapen, *own.misshapen]))
    report = Report(applied, total, unplaced, others, change, own.total, placed.how, shapes)
    return placed.model, placed.clip, report


def _weights(model: Any, clip: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = model.model.state_dict()
    return found if clip is None else found | clip.cond_stage_model.state_dict()


def _none_fits(model: Any, total: int, names: Iterable[str], own: bottlenecks.Found) -> str:
    return (
        f"None of the {total} tensors of the LoRA fits {type(model.model).__name__}, for example "
        f"{some(names, _LISTED)}. It was trained on another kind of model. {own.reason}"
    ).rstrip()


def _fitting(
    loaded: Mapping[Any, Any],
    weights: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None,
) -> dict[Any, Any]:
    """The patches of the right shape; where the file's metadata are known, rotations and DoRA by our own code."""
    fitting = {at: one for at, one in loaded.items() if fitting_shapes.fits(one, at, weights)}
    return fitting if metadata is None else dora.exact(oft.exact(fitting), metadata)


def _lost(
    record: "_Record",
    key_map: Mapping[str, Any],
    loaded: Mapping[Any, Any],
    fitting: Mapping[Any, Any],
    taken: Collection[Any],
) -> tuple[set[str], set[str]]:
    """The file's tensors that have no place in the model, and those of another shape than their place's."""
    misfits, refused = loaded.keys() - fitting.keys(), fitting.keys() - taken
    misshapen = record.keys_of(prefix for prefix, at in key_map.items() if at in misfits)
    left = record.keys_of(prefix for prefix, at in key_map.items() if at in refused)
    unmatched = (set(record) - record.read | left) - misshapen
    return record.of_file(unmatched), record.of_file(misshapen)


def self_check(path: Path, model: Any, clip: Any = None) -> Report:
    """Open a LoRA file again and load it as the stock loader does; nothing is changed.

    Args:
        path: The file.
        model: The MODEL that it was trained on.
        clip: The CLIP that it was trained on, if text was trained.

    Returns:
        How much takes effect; ``complete`` is False for a part.

    Raises:
        ValueError: The file cannot be read, or none of it fits.
    """
    import comfy.utils

    try:
        lora = comfy.utils.load_torch_file(str(path), safe_load=True)
    except Exception as error:
        raise ValueError(f"'{path.name}' cannot be opened again: {error}") from error
    return apply_both(model, clip, lora)[2]


def lora_metadata(
    tensors: Mapping[str, torch.Tensor],
    model: Any = None,
    *,
    title: str = "",
    trigger: str = "",
    resolution: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The metadata of a LoRA file: kohya's ``ss_*``, ``modelspec.*`` and ``graft.*``.

    There is no clock, path or counter in it: equal runs give equal files.

    Args:
        tensors: Tensors of the file by key.
        model: The MODEL that it was trained on; its architecture is written where it has a name.
        title: What the LoRA is called.
        trigger: The word or phrase that calls what was learned.
        resolution: Side of the training pictures in pixels, 0 when unknown.
        facts: More to note, under ``graft.<key>``; keys that begin with ``ss_`` or ``modelspec.``
            are kept as they are.

    Returns:
        Text by key, none of it empty but an unknown base model.
    """
    config = type(getattr(getattr(model, "model", None), "model_config", None)).__name__
    kind = getattr(getattr(getattr(model, "model", None), "model_type", None), "name", "")
    architecture, implementation, base = _FAMILIES.get(config, ("", "", ""))
    is_v = kind == "V_PREDICTION"
    if config == "SD20" and is_v:
        architecture, base = "stable-diffusion-v2-768-v", "sd_v2_v"
    said = {
        "ss_v2": str(config == "SD20"),
        "ss_base_model_version": base or ("" if config == "NoneType" else config),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora" if architecture else "",
        "modelspec.implementation": implementation,
        "modelspec.title": title,
        "modelspec.trigger_phrase": trigger,
        "modelspec.prediction_type": _PREDICTIONS.get(kind, ""),
        "modelspec.resolution": f"{resolution}x{resolution}" if resolution else "",
        "graft.format": "1",
        "graft.model_class": "" if config == "NoneType" else config,
        **lora_file.describe(tensors),
    }
    for key, value in (facts or {}).items():
        name = key if key.startswith(("ss_", "modelspec.", "graft.")) else f"graft.{key}"
        said[name] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return {key: value for key, value in said.items() if value or key == "ss_base_model_version"}


def save_lora(
    path: Path,
    adapter: AdapterFile,
    *,
    prompt: Any = None,
    extra_pnginfo: Mapping[str, Any] | None = None,
) -> Path:
    """Write a LoRA file at once and whole, and let the host list it.

    Args:
        path: The wished file in an allowed folder. A file of this name with other bytes stays,
            and a number is added; one with equal bytes is used as it is.
        adapter: What to write.
        prompt: The API prompt to embed, unless the host forbids metadata.
        extra_pnginfo: The workflow to embed, as core's nodes get it; likewise.

    Returns:
        The file.

    Raises:
        ValueError: The name cannot be a file's, or there are no tensors.
        OSError: The disk is full, or the folder cannot be written.
    """
    from comfy.cli_args import args

    metadata = dict(adapter.metadata)
    if not getattr(args, "disable_metadata", False):
        if prompt is not None:
            metadata["prompt"] = json.dumps(prompt)
        for key, value in (extra_pnginfo or {}).items():
            metadata[key] = json.dumps(value)
    with torch.inference_mode(False), torch.no_grad():
        tensors = {k: t.detach().cpu().contiguous() for k, t in adapter.tensors.items()}
    saved = paths.write_once(
        path.parent,
        path.name.removesuffix(".safetensors"),
        ".safetensors",
        lambda file: lora_file.write(file, tensors, metadata),
    )
    paths.refresh_loras()
    return saved


def _load(
    lora: Mapping[str, torch.Tensor],
    model: Any,
    clip: Any,
    metadata: Mapping[str, str] | None,
    places: Mapping[str, Any] | None,
) -> tuple["_Record", dict[str, Any], dict[Any, Any]]:
    import comfy.lora
    import comfy.lora_convert

    # Patches outlive the node: no inference tensors in them.
    plain = {key: t.clone() if t.is_inference() else t for key, t in lora.items()}
    record = _Record(comfy.lora_convert.convert_lora(plain))
    key_map = homes.key_map(model, clip) if places is None else dict(places)
    if metadata is not None:
        renamed = renaming.rename(record, metadata, homes.preferred(key_map))
        record = _Record(renamed.tensors, renamed.origins)
        key_map = {layer: key_map[layer] for layer in renamed.layers}
    return record, key_map, comfy.lora.load_lora(record, key_map, log_missing=False)


class _Record(dict[str, torch.Tensor]):
    """A LoRA that notes which of its tensors the host's loader takes."""

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], origins: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(tensors)
        self.read: set[str] = set()
        self._origins = dict.fromkeys(tensors) if origins is None else origins

    def __getitem__(self, key: str) -> torch.Tensor:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default

    def keys_of(self, prefixes: Iterable[str]) -> set[str]:
        starts = tuple(f"{prefix}{mark}" for prefix in prefixes for mark in "._")
        return {key for key in self if key.startswith(starts)} & self.read if starts else set()

    def of_file(self, keys: Iterable[str]) -> set[str]:
        """The file's own names of these; a tensor that is no file's has none."""
        return {self._origins[key] or key for key in keys if key in self._origins}
