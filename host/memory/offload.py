# SPDX-License-Identifier: Apache-2.0
"""Training with the weights of the blocks on the CPU, for models that do not fit on the device.

The host's layers copy such weights to the device in their forward, to fresh tensors each time. With every block
checkpointed the copies are freed as the forward goes on, and in the backward pass those of one block at a time live
again. All else (embeddings, first and last layers, single parameters, adapters) stays on the device.

LoRA patches of the wire are put into the weights once, by the host's own code and as it does where it loads a model
whole, so that a run gives the same bits; the weights without them wait on the CPU, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ...trainers.allocations import held
from .checkpointing import find_blocks

LEAST = 0.1  # bytes: the host's way to say that nothing is to be loaded


class Offload:
    """Where the weights of one training clone are while it is offloaded. Nothing is changed until ``begin``.

    Args:
        patcher: the clone (a ModelPatcher) with weights of its own that are not loaded.

    Raises:
        ValueError: the model has no blocks, or weights that cannot be copied at each use.
    """

    def __init__(self, patcher: Any):
        self._patcher = patcher
        try:
            self.blocks = find_blocks(patcher.model.diffusion_model)
        except ValueError as error:
            raise ValueError(
                f"{type(patcher.model.diffusion_model).__name__} has no blocks whose weights could be kept on the CPU: "
                "set offload to off"
            ) from error
        self._layers = dict.fromkeys(m for b in self.blocks for m in b.modules() if _casts(m))
        if not self._layers:
            raise ValueError(
                "no layer of this model copies its weights to where they are needed, so that none can be kept on the "
                "CPU: set offload to off"
            )
        for layer in self._layers:
            if any(type(p).__name__ == "QuantizedTensor" for p in layer._parameters.values()):
                raise ValueError(
                    "quantised weights cannot be kept on the CPU while they are trained on: set offload to off, or use "
                    "the unquantised model (bf16, fp16 or plain fp8)"
                )
        self._patches: dict[str, Any] = {}
        self._backup: dict[str, Any] = {}

    @property
    def parameters(self) -> list[torch.Tensor]:
        """The weights that are kept on the CPU."""
        return [p for layer in self._layers for p in _own(layer)]

    def largest(self, dtype: torch.dtype) -> int:
        """Bytes of the weights of the largest block once they are copied for a computation in ``dtype``."""
        return max(
            sum(
                p.numel() * dtype.itemsize
                for m in b.modules()
                if m in self._layers
                for p in _own(m)
            )
            for b in self.blocks
        )

    def begin(self) -> None:
        """Make the host load the clone so from now on, whoever asks it to; patches go into the weights."""
        patcher = self._patcher
        device, home = patcher.load_device, patcher.offload_device
        for key in _patched(patcher):
            patcher.patch_weight_to_device(key, device_to=device)
            owner, _, name = key.rpartition(".")
            _move(patcher.model.get_submodule(owner), home, name)
        # The host would give them back, or patch the patched, in moving weights about.
        self._backup, patcher.backup = patcher.backup, {}
        self._patches, patcher.patches = patcher.patches, {}
        patcher.partially_load = self._load

    def copy_always(self) -> None:
        """Make the layers copy their weights also where they are at hand, so that a CPU tries what a GPU does."""
        for layer in self._layers:
            for name in ("weight_function", "bias_function"):
                setattr(layer, name, [*getattr(layer, name), _itself])

    def end(self) -> None:
        """Give the clone its patches back, and what it had before them to put back when it is unloaded next."""
        patcher = self._patcher
        patcher.__dict__.pop("partially_load", None)
        patcher.backup.update(self._backup)
        patcher.patches = self._patches or patcher.patches
        self._backup, self._patches = {}, {}

    def is_placed(self) -> bool:
        """Whether all weights are where they should be."""
        patcher = self._patcher
        model, device, home = patcher.model, patcher.load_device, patcher.offload_device
        return (
            bool(model.model_lowvram)
            and model.current_weight_patches_uuid == patcher.patches_uuid
            and all(
                _is_at(t, home if m in self._layers else device)
                for m in model.modules()
                for t in _tensors(m)
            )
            and all(m.comfy_cast_weights for m in self._layers)
        )

    def _load(
        self, device_to: Any, extra_memory: int = 0, force_patch_weights: bool = False
    ) -> int:
        """In place of the patcher's ``partially_load``, which the host calls to load it.

        Args:
            device_to: where to.
            extra_memory: what the host would allow; the same place is taken whatever that is.
            force_patch_weights: without meaning here, as patches are in the weights.

        Returns:
            Bytes that were loaded.
        """
        patcher = self._patcher
        model = patcher.model
        with patcher.use_ejected(skip_and_inject_on_exit_only=True):
            is_there = self.is_placed()
            before = model.model_loaded_weight_memory if is_there else 0
            patcher.unpatch_model(patcher.offload_device, unpatch_weights=not is_there)
            patcher.patch_model(load_weights=False)
            try:
                if not is_there:
                    self._place(device_to)
            except Exception:
                patcher.detach()
                raise
        return int(model.model_loaded_weight_memory - before)

    def _place(self, device: torch.device) -> None:
        patcher = self._patcher
        model = patcher.model
        for module in model.modules():
            _move(module, patcher.offload_device if module in self._layers else device)
        patcher.load(device, lowvram_model_memory=LEAST)
        if device.type == patcher.offload_device.type:
            self.copy_always()
        model.model_loaded_weight_memory = held(
            t for m in model.modules() if m not in self._layers for t in _tensors(m)
        )


def _itself(weight: torch.Tensor) -> torch.Tensor:
    """What the host calls on a copy of a weight."""
    return weight


def _casts(module: nn.Module) -> bool:
    """Whether a layer copies its weights to the device and dtype of its input, and has some."""
    is_leaf = next(module.children(), None) is None
    return is_leaf and hasattr(module, "comfy_cast_weights") and bool(_own(module))


def _own(module: nn.Module) -> list[torch.Tensor]:
    return [p for p in module._parameters.values() if p is not None]


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from _own(module)
    yield from (b for b in module._buffers.values() if b is not None)


def _is_at(tensor: torch.Tensor, device: torch.device) -> bool:
    there = tensor.device
    return there.type == device.type and (device.index is None or there.index == device.index)


def _move(module: nn.Module, device: torch.device, only: str | None = None) -> None:
    """Move a module's own tensors, not those of modules inside it."""
    for name, parameter in module._parameters.items():
        if parameter is not None and only in (None, name) and not _is_at(parameter, device):
            moved = parameter.detach().to(device)
            module._parameters[name] = nn.Parameter(moved, requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None and only is None and not _is_at(buffer, device):
            module._buffers[name] = buffer.detach().to(device)


def _patched(patcher: Any) -> Sequence[str]:
    """Keys of the patches that the host applies: of parameters of modules without parameters further inside."""
    keys = []
    for name, module in patcher.model.named_modules():
        own = {key for key, value in module._parameters.items() if value is not None}
        if any(key not in own for key, _ in module.named_parameters()):
            continue
        keys += [key for key in (f"{name}.{leaf}" for leaf in own) if key in patcher.patches]
    return sorted(keys)
