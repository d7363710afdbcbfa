# SPDX-License-Identifier: Apache-2.0
"""Patches of weights that count in a part of the sampling or of the picture only: beside the layers, by hooks.

The weights stay as they are, so that everything else composes with it: other patches, offloaded and quantised weights.
A LoRA costs its two thin products in every step; of all else dW is computed once, upon the weights with the patches
that were on the wire before, and kept in the weights' dtype.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ...adapters import effect
from ...adapters.effect import Effect
from ...adapters.form import Form
from ...adapters.targets import kind
from . import model_patches, picture
from .injection import Injected, Removers
from .limits import MARK, Gate, Limits

_ROOT = "diffusion_model."
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_log = logging.getLogger(__name__)
Weights = Callable[[str], tuple[torch.Tensor, torch.dtype]]


class Hooked(Injected):
    """Effects beside the layers of a model.

    Args:
        effects: By the layer's name.
        limits: When and where they count.
    """

    def __init__(self, effects: Mapping[str, list[Effect]], limits: Limits) -> None:
        super().__init__()
        self.effects, self.limits = effects, limits
        self._gate = Gate(limits)
        self._seen: set[str] = set()

    def put(self, patched: Any) -> None:
        """Let a patcher, a fresh clone, have them."""
        add(self, patched, self._gate, model_patches.tell([self.effects, self.limits]))

    def put_on(self, patcher: Any) -> Removers:
        """Hook every layer."""
        root = patcher.model.diffusion_model
        removers = self._gate.install(patcher)
        mask = self._gate.picture
        places = (
            {} if mask is None else {name: picture.place_of(root, name) for name in self.effects}
        )
        if mask is not None:
            removers += mask.install(root, {place for place in places.values() if place})
        for name, effects in self.effects.items():
            module, place = root.get_submodule(name), places.get(name)
            if place is None:
                removers.append(module.register_forward_hook(self._plain(name, effects)).remove)
                continue
            removers.append(module.register_forward_hook(self._masked(name, place, effects)).remove)
            if place.kind == picture.TEXT:
                out = root.get_submodule(f"{name.rpartition('.')[0]}.to_out")
                removers.append(out.register_forward_pre_hook(self._check).remove)
        return removers

    def release(self, patcher: Any) -> None:
        """Give the device's memory back, and say what never was computed."""
        missing = sorted(self.effects.keys() - self._seen) if self._seen else []
        if missing:
            _log.warning(
                "%d of %d layers of an adapter with a range or a mask had no effect, for example %s: this ComfyUI "
                "computes them without their forward, as it does with some quantised layers.",
                len(missing),
                len(self.effects),
                missing[0],
            )
        self._seen.clear()
        for effects in self.effects.values():
            for one in effects:
                one.release()
        if self._gate.picture is not None:
            self._gate.picture.release()

    def _plain(self, name: str, effects: list[Effect]) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], y: torch.Tensor) -> torch.Tensor | None:
            if not self._gate.is_on():
                return None
            self._seen.add(name)
            for one in effects:
                change = one(args[0])
                y = y + change.reshape(*change.shape, *(1,) * (y.ndim - change.ndim))
            return y

        return hook

    def _masked(self, name: str, place: picture.Place, effects: list[Effect]) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], y: torch.Tensor) -> torch.Tensor | None:
            mask = self._gate.picture
            if not self._gate.is_on() or mask is None or mask.texts is None:
                return None
            self._seen.add(name)
            if place.kind == picture.TEXT:
                for one in effects:
                    mask.texts.add(mask, place, name, one(args[0]))
                return None
            for one in effects:
                change = mask.masked(place, one(args[0]), y)
                y = y.reshape(*y.shape, *(1,) * (change.ndim - y.ndim)) + change
            return y

        return hook

    def _check(self, *_: Any) -> None:
        mask = self._gate.picture
        if mask is not None and mask.texts is not None:
            mask.texts.check()


def add(hooks: Injected, patched: Any, gate: Gate, told: str) -> None:
    """Let a patcher, a fresh clone, have limited hooks.

    Args:
        hooks: What it gets.
        patched: The host's ModelPatcher.
        gate: The hooks' own.
        told: What they are known by.
    """
    from comfy.patcher_extension import WrappersMP

    count = sum(str(key).startswith(MARK) for key in patched.injections)
    key = f"{MARK} {count} {hashlib.sha256(told.encode()).hexdigest()[:16]}"
    if gate.picture is not None:
        patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, key, gate.picture.watcher())
    hooks.add_to(patched, key)


def effects(
    model: Any, patches: Mapping[Any, Any], strengths: Mapping[Any, float], limits: Limits
) -> tuple[dict[str, list[Effect]], set[Any]]:
    """What patches change of the outputs of a model's layers.

    Args:
        model: The host's ModelPatcher, with the patches that come before.
        patches: What the host's loader made, or our own, by place.
        strengths: What each one's effect is multiplied by, by place.
        limits: When and where they will count.

    Returns:
        Effects by the layer's name; and the places of what cannot be limited.
    """
    root = model.model.diffusion_model
    weights = _weights(model)
    found: dict[str, list[Effect]] = {}
    left: set[Any] = set()
    for at, patch in patches.items():
        if strengths.get(at, 0.0) == 0.0:
            continue
        key = str(at if isinstance(at, str) else at[0])
        name, _, parameter = key.removeprefix(_ROOT).rpartition(".")
        made = None
        if limits.mask is None or (name and picture.place_of(root, name)):
            made = _effect(root, name, parameter, patch, strengths[at], at, weights)
        if made is None:
            left.add(at)
        else:
            found.setdefault(name, []).append(made)
    return found, left


def _weights(model: Any) -> Weights:
    import comfy.model_management

    from ..files.patched_weights import patched

    entries = model.get_key_patches(_ROOT)
    device = comfy.model_management.get_torch_device()

    def weight(key: str) -> tuple[torch.Tensor, torch.dtype]:
        dtype = entries[key][0][0].dtype
        return patched(entries[key], key, device), dtype if dtype in _FLOATS else torch.bfloat16

    return weight


def _effect(
    root: nn.Module,
    name: str,
    parameter: str,
    patch: Any,
    strength: float,
    at: Any,
    weights: Weights,
) -> Effect | None:
    """What a patch changes; None where a hook cannot do it."""
    try:
        module = root.get_submodule(name)
        form = Form.of(module, "a hook") if kind(module) else None
    except (AttributeError, ValueError):
        return None
    offset, function = (
        (None, None) if isinstance(at, str) else (at[1], at[2] if len(at) > 2 else None)
    )
    rows = (offset[1], offset[2]) if offset is not None and offset[0] == 0 else None
    if form and parameter == "weight" and function is None and (offset is None or rows):
        parts = tuple(getattr(patch, "weights", ()))
        if getattr(patch, "name", "") == "lora" and all(part is None for part in parts[3:6]):
            up, down, alpha = parts[:3]
            scale = strength * (1.0 if alpha is None else alpha / down.shape[0])
            return effect.low_rank(form, up.cpu(), down.cpu(), scale, rows)
    is_layer = form is not None and parameter in ("weight", "bias")
    if not is_layer and parameter not in ("weight", "bias"):
        return None
    change = _change(patch, strength, offset, function, f"{_ROOT}{name}.{parameter}", weights)
    if form is None:
        return effect.of_norm(module, parameter, change)
    if parameter == "bias":
        return effect.bias(form, change)
    return effect.dense(form, change if rows is None else change.narrow(0, *rows), rows)


def _change(
    patch: Any, strength: float, offset: Any, function: Any, key: str, weights: Weights
) -> torch.Tensor:
    """dW of a patch, upon the weight with the patches before it; on the CPU in the weight's dtype."""
    import comfy.lora

    before, dtype = weights(key)
    patches = [(strength, patch, 1.0, offset, function)]
    after = comfy.lora.calculate_weight(patches, before.clone(), key)
    return (after - before).to("cpu", dtype)
