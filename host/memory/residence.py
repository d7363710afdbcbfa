# SPDX-License-Identifier: Apache-2.0
"""Where the weights of a training clone are: on the device as a whole, or those of its blocks on the CPU."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import nn

from ...trainers.allocations import held
from ...trainers.plan import OFF, ON
from .offload import Offload
from .out_of_memory import end, free, is_out_of_memory

ALL_MEMORY = 1e20  # bytes: the host unloads every other model for this
MIB = 2**20
_log = logging.getLogger(__name__)


class Residence:
    """The weights of one training clone.

    Args:
        patcher: the clone (a ModelPatcher), not loaded.

    Attributes:
        offloaded: the weights that are on the CPU; None while all are on the device.
    """

    def __init__(self, patcher: Any):
        self._patcher = patcher
        self.offloaded: Offload | None = None
        own_weights(patcher)

    def begin(self, offload: str, limit: int) -> None:
        """Load the clone for the first time.

        Args:
            offload: ``on`` keeps blocks on the CPU, ``auto`` where the whole cannot be on the device, ``off`` never.
            limit: bytes that may be taken on the device; 0 is what there is.

        Raises:
            ValueError: ``offload`` is ``on`` for a model that cannot be offloaded.
            RuntimeError: the model does not fit as a whole and may not be offloaded; the host's kind of error.
        """
        if offload == ON:
            return self.offload()
        if offload != OFF and not self._can_fit(limit) and self._offloads():
            return None
        try:
            self.load()
            return None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            said = str(error).strip().splitlines()[:1]
        self.release()
        free()
        own_weights(self._patcher)
        if offload != OFF and self._offloads():
            return None
        weights = math.ceil(self._size() / MIB)
        raise end(
            f"Out of memory while the model was loaded: its weights take {weights:,} MiB ({' '.join(said)}). What "
            f"would do: {'offload auto; or ' if offload == OFF else ''}a smaller model, or one in fp8; or close what "
            "else uses the device's memory."
        )

    def load(self) -> None:
        """Load the weights to where they belong, also after something else (a VAE, a sampler) has evicted them.

        Raises:
            RuntimeError: the host keeps others offloaded than it was asked to.
        """
        import comfy.model_management as mm

        patcher = self._patcher
        with torch.inference_mode(False), torch.no_grad():
            mm.load_models_gpu([patcher], memory_required=ALL_MEMORY, force_full_load=True)
            own_weights(patcher)
        if self.offloaded is not None and not self.offloaded.is_placed():
            raise RuntimeError(
                "ComfyUI has put the weights elsewhere than training with offload needs them: set offload to off"
            )
        if self.offloaded is None and patcher.model.model_lowvram:
            raise RuntimeError(
                "ComfyUI keeps part of the model offloaded, which cannot be trained: start it without "
                "--novram, set offload to on, or use a smaller model"
            )
        for p in patcher.model.parameters():
            p.requires_grad_(False)
        patcher.model.current_patcher = patcher

    def offload(self) -> None:
        """Keep the weights of all blocks on the CPU from here on; a second call does nothing.

        Raises:
            ValueError: the model cannot be offloaded; nothing is changed.
        """
        if self.offloaded is not None:
            return
        made = Offload(self._patcher)
        self.release()
        with torch.inference_mode(False), torch.no_grad():
            own_weights(self._patcher)
            self.offloaded = made
            made.begin()
        free()
        self.load()

    def release(self) -> None:
        """Unload the clone: patched weights back, the model on its offload device, no gradients."""
        forget(self._patcher)
        if self.offloaded is not None:
            self.offloaded.end()
            self.offloaded = None
        give_back(self._patcher)

    def _size(self) -> int:
        model = self._patcher.model
        return held([*model.parameters(), *model.buffers()])

    def _can_fit(self, limit: int) -> bool:
        """Whether it is worth trying to load all weights; a CPU has them in its memory already."""
        import comfy.model_management as mm

        device = self._patcher.load_device
        if device.type == "cpu":
            return True
        total = int(mm.get_total_memory(device))
        return self._size() < min(total, limit or total)

    def _offloads(self) -> bool:
        try:
            self.offload()
        except ValueError as error:
            _log.warning("The weights cannot be kept on the CPU: %s", error)
            return False
        return True


def forget(patcher: Any) -> None:
    """Take a patcher out of the host's list of loaded models."""
    import comfy.model_management as mm

    for index in reversed(range(len(mm.current_loaded_models))):
        if mm.current_loaded_models[index].model is patcher:
            loaded = mm.current_loaded_models.pop(index)
            if loaded.model_finalizer is not None:
                loaded.model_finalizer.detach()


def give_back(patcher: Any) -> None:
    """Patched weights back, the model on its offload device, no gradients."""
    with torch.no_grad():
        patcher.detach()
    patcher.model.current_patcher = None
    for module in patcher.model.modules():
        if hasattr(module, "prev_comfy_cast_weights"):
            module.comfy_cast_weights = module.prev_comfy_cast_weights
            del module.prev_comfy_cast_weights
    for p in patcher.model.parameters():
        p.requires_grad_(False)
        p.grad = None


def own_weights(patcher: Any) -> None:
    """Replace inference tensors, which autograd refuses, by normal ones of the same values."""
    made: dict[int, Any] = {}  # shared tensors stay shared

    def normal(tensor: Any) -> Any:
        if id(tensor) not in made:
            copy = tensor.detach().clone()
            if isinstance(tensor, nn.Parameter):
                copy = nn.Parameter(copy, requires_grad=False)
                copy.__dict__.update(tensor.__dict__)
            made[id(tensor)] = copy
        return made[id(tensor)]

    roots = [patcher.model, *patcher.object_patches.values()]
    with torch.no_grad():
        for root in (r for r in roots if isinstance(r, nn.Module)):
            for module in root.modules():
                for slots in (module._parameters, module._buffers, module.__dict__):
                    for name, value in slots.items():
                        if isinstance(value, torch.Tensor) and value.is_inference():
                            slots[name] = normal(value)
