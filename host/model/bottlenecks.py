# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters on a MODEL: the host's LoRA code does not know them, so they are put on by an injection.

The host calls it when it loads a patcher and takes it off when it loads another one of the same model.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...adapters.bottleneck import BottleneckLayer, built, grouped
from ...loaders import lora_file

_ROOT = "diffusion_model."


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

    def put(self, patched: Any, strengths: Mapping[Any, float]) -> None:
        """Put the layers on a patcher, behind those that it has.

        Args:
            patched: The host's ModelPatcher: a fresh clone.
            strengths: What each layer's effect is multiplied by, by the block's name.
        """
        from comfy.patcher_extension import PatcherInjection

        # A clone of a loaded patcher says that it is on the model, but only the other one is.
        patched.is_injected = False
        of_layers = {name: strengths[name] for name in self.layers if strengths[name] != 0}
        if not of_layers:
            return
        made = Injected(self.tensors, of_layers, {name: self.layers[name] for name in of_layers})
        digest = lora_file.data_hash(self.tensors)[:16]
        count = sum(key.startswith("graft bottleneck") for key in patched.injections)
        key = f"graft bottleneck {count} {digest}"
        patched.set_injections(key, [PatcherInjection(inject=made.inject, eject=made.eject)])


class Injected:
    """Layers that a patcher puts on its model while it is loaded.

    Args:
        tensors: Of the layers, by the file's keys; what the MODEL is known by.
        strengths: By the block's name, likewise.
        layers: By the block's name.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        strengths: Mapping[str, float],
        layers: Mapping[str, BottleneckLayer],
    ) -> None:
        self.tensors, self.strengths = tensors, strengths
        self._installed = layers
        self._on: dict[int, tuple[weakref.ref[Any], list[Callable[[], None]]]] = {}
        for name, layer in layers.items():
            layer.strength = strengths[name]

    def inject(self, patcher: Any) -> None:
        """Hook the model's blocks, with the layers where the model is computed.

        Not where another patcher has it on: the host ejects that one before it loads this one, but lets a clone, which
        is not loaded, think that it was ejected for a moment while patches are added to it.
        """
        root: nn.Module = patcher.model
        owner, removers = self._on.get(id(root), (lambda: None, []))
        if owner() not in (None, patcher):
            return
        self._take_off(removers)
        with torch.inference_mode(False):
            for name, layer in self._installed.items():
                layer.to(patcher.load_device)
                removers.append(layer.install(root.get_submodule(name), _is_on))
        self._on[id(root)] = (weakref.ref(patcher), removers)

    def eject(self, patcher: Any) -> None:
        """Take the hooks off, if this patcher put them on."""
        owner, removers = self._on.get(id(patcher.model), (lambda: None, []))
        if owner() in (None, patcher):
            self._take_off(removers)
            self._on.pop(id(patcher.model), None)
            if not self._on:
                for layer in self._installed.values():
                    layer.to(patcher.offload_device)

    def _take_off(self, removers: list[Callable[[], None]]) -> None:
        while removers:
            removers.pop()()


def _is_on() -> bool:
    return True


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
