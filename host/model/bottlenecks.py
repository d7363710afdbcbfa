# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters on a MODEL: the host's LoRA code does not know them, so they are put on by an injection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ...adapters.bottleneck import BottleneckLayer, built, grouped
from ...loaders import lora_file
from . import hooked, injection, model_patches, picture
from .limits import Gate, Limits

ALWAYS = Limits()
_ROOT = "diffusion_model."
_OF_TEXT = "attn2c-attn2c"
Put = tuple[list[str], list[str]]


@dataclass(frozen=True, eq=False)
class Found:
    """What of a file's bottleneck adapters fits a MODEL.

    Attributes:
        layers: By the block's name, with ``diffusion_model.`` before it.
        tensors: Those of these layers.
        total: Of all tensors.
        unmatched: Keys that the model has no block for.
        misshapen: Keys that do not fit their block.
        reason: Why the first of these does not.
    """

    layers: Mapping[str, BottleneckLayer] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    total: int = 0
    unmatched: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    reason: str = ""

    @property
    def applied(self) -> int:
        """How many tensors fit."""
        return self.total - len(self.unmatched) - len(self.misshapen)

    def put(self, patched: Any, strengths: Mapping[Any, float], limits: Limits = ALWAYS) -> Put:
        """Put the layers on a patcher, behind those that it has.

        Args:
            patched: The host's ModelPatcher: a fresh clone.
            strengths: What each layer's effect is multiplied by, by the block's name.
            limits: When and where it counts.

        Returns:
            Names of the blocks that have one, and the adapters that are left out because a mask has no place for them.
        """
        of_layers = {name: strengths[name] for name in self.layers if strengths[name] != 0}
        left = []
        if limits.mask is not None:
            for name in list(of_layers):
                parts = self.layers[name].parts
                if _OF_TEXT in parts:
                    left.append(f"{name.removeprefix(_ROOT)} {_OF_TEXT}")
                    del parts[_OF_TEXT]
                if not len(parts):
                    del of_layers[name]
        if of_layers:
            layers = {name: self.layers[name] for name in of_layers}
            made = Injected(self.tensors, of_layers, layers, limits)
            digest = lora_file.data_hash(self.tensors)[:16]
            if limits.are_none:
                count = sum(key.startswith("graft bottleneck") for key in patched.injections)
                made.add_to(patched, f"graft bottleneck {count} {digest}")
            else:
                told = f"bottleneck {digest} {model_patches.tell([of_layers, limits])}"
                hooked.add(made, patched, made.gate, told)
        return list(of_layers), left


class Injected(injection.Injected):
    """Layers that a patcher puts on its model while it is loaded.

    Args:
        tensors: Of the layers, by the file's keys; what the MODEL is known by.
        strengths: By the block's name, likewise.
        layers: By the block's name.
        limits: When and where they count.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        strengths: Mapping[str, float],
        layers: Mapping[str, BottleneckLayer],
        limits: Limits = ALWAYS,
    ) -> None:
        super().__init__()
        self.tensors, self.strengths, self.limits = tensors, strengths, limits
        self.gate = Gate(limits)
        self._installed = layers
        for name, layer in layers.items():
            layer.strength = strengths[name]

    def put_on(self, patcher: Any) -> injection.Removers:
        """Hook the model's blocks, with the layers where the model is computed."""
        root: nn.Module = patcher.model
        removers: injection.Removers = []
        is_on: Callable[[], bool] = _always
        if not self.limits.are_none:
            removers, is_on = self.gate.install(patcher), self.gate.is_on
        mask = self.gate.picture
        places: set[picture.Place] = set()
        for name, layer in self._installed.items():
            layer.to(patcher.load_device)
            if mask is not None:
                place = picture.place_of(root.get_submodule(_ROOT[:-1]), name.removeprefix(_ROOT))
                if place is not None:
                    layer.placed = partial(_masked, mask, place)
                    places.add(place)
            removers.append(layer.install(root.get_submodule(name), is_on))
        if mask is not None:
            removers += mask.install(root.get_submodule(_ROOT[:-1]), places)
        return removers

    def release(self, patcher: Any) -> None:
        """Take the layers off the device."""
        for layer in self._installed.values():
            layer.to(patcher.offload_device)
        if self.gate.picture is not None:
            self.gate.picture.release()


def _always() -> bool:
    return True


def _masked(mask: picture.Picture, place: picture.Place, change: torch.Tensor) -> torch.Tensor:
    return mask.masked(place, change, change)


def find(model: Any, tensors: Mapping[str, torch.Tensor]) -> Found:
    """Build the bottleneck adapters of a file for a MODEL's blocks.

    Args:
        model: The host's ModelPatcher.
        tensors: Of a file, of any kind.
    """
    layers: dict[str, BottleneckLayer] = {}
    unmatched: list[str] = []
    misshapen: list[str] = []
    reason = ""
    groups = grouped(tensors)
    kept: dict[str, torch.Tensor] = {}
    with torch.inference_mode(False), torch.no_grad():
        for name, group in groups.items():
            keys = {f"{name}.{key}": tensor for key, tensor in group.items()}
            try:
                block = model.model.get_submodule(name)
            except AttributeError:
                unmatched += keys
                continue
            try:
                layers[name] = built(block, group).eval().requires_grad_(False)
            except ValueError as error:
                misshapen += keys
                reason = reason or f"{name}: {error}"
                continue
            kept |= {key: tensor.detach().clone() for key, tensor in keys.items()}
    lost = (tuple(sorted(unmatched)), tuple(sorted(misshapen)))
    return Found(layers, kept, sum(map(len, groups.values())), *lost, reason)
