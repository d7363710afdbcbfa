# SPDX-License-Identifier: Apache-2.0
"""The MODEL on the wire, made trainable for a while: a loaded clone with normal weights, and nothing else changed.

Everything this module patches in the host is given back when the context ends, also when the body or the entry
raises. The weights keep their values: samples after training equal samples before, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ...trainers.plan import OFF
from ..memory.checkpointing import Checkpointing, find_blocks
from ..memory.offload import Offload
from ..memory.residence import Residence
from .denoiser import HostDenoiser, differentiable_rope
from .lending import forwards_of, is_dynamic, on_exit, reload_all, replace, unload
from .trainable import refuse_untrainable

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "bf16", "fp32")
_is_training = False


class Trainee:
    """A training clone, loaded. Valid inside `trainee` only.

    Args:
        patcher: the clone.
        residence: where its weights are.
        compute_dtype: dtype of activations.

    Attributes:
        patcher: the clone (a ModelPatcher); sample with it to see what was trained so far.
        model: its BaseModel.
        diffusion_model: the network; adapters are attached to its modules.
        device: where it is computed.
        compute_dtype: dtype of activations.
        denoiser: D(x; sigma, cond).
        latent_format: the model's latent format.
    """

    def __init__(self, patcher: Any, residence: Residence, compute_dtype: torch.dtype):
        self.patcher = patcher
        self.model = patcher.model
        self.diffusion_model: nn.Module = patcher.model.diffusion_model
        self.device: torch.device = patcher.load_device
        self.compute_dtype = compute_dtype
        self.latent_format = patcher.model.latent_format
        self.denoiser = HostDenoiser(patcher)
        self._residence = residence
        self._checkpointing = Checkpointing(self.diffusion_model)
        if residence.offloaded is not None:
            self._checkpointing.on()

    def checkpointing(self, on: bool | Collection[int]) -> None:
        """Switch gradient checkpointing by block on or off; adapters may be attached before or after.

        Args:
            on: of all blocks, of none, or of those at these places in the list of `find_blocks`. While weights are
                offloaded it stays on for all.
        """
        if on is True or self.offloaded is not None:
            self._checkpointing.on()
        elif not on:
            self._checkpointing.off()
        else:
            self._checkpointing.on(on)

    @property
    def checkpointed(self) -> int:
        """How many blocks are checkpointed."""
        return self._checkpointing.count

    @property
    def blocks(self) -> list[nn.Module]:
        """What can be checkpointed, in the order in which it is computed; empty where nothing can."""
        try:
            return find_blocks(self.diffusion_model)
        except ValueError:
            return []

    @property
    def offloaded(self) -> Offload | None:
        """The weights that are on the CPU while others are on the device; None while all are on the device."""
        return self._residence.offloaded

    @property
    def weights_there(self) -> list[torch.Tensor]:
        """The model's tensors that are on the device."""
        apart = {id(p) for p in (self.offloaded.parameters if self.offloaded else ())}
        every = [*self.model.parameters(), *self.model.buffers()]
        return [tensor for tensor in every if id(tensor) not in apart]

    def offload(self) -> None:
        """Keep the weights of all blocks on the CPU from here on, and checkpoint all blocks.

        Raises:
            ValueError: the model cannot be offloaded; nothing is changed.
        """
        self._residence.offload()
        self._checkpointing.on()

    def reload(self) -> None:
        """Load the weights again, after something else (a VAE, a sampler) may have evicted them.

        Raises:
            RuntimeError: the host keeps weights offloaded that it should not.
        """
        self._residence.load()

    def close(self) -> None:
        """Take checkpointing and hooks off the network."""
        self._checkpointing.off()
        self.denoiser.close()


@contextmanager
def trainee(
    model: Any, *, precision: str = "auto", offload: str = OFF, limit: int = 0
) -> Iterator[Trainee]:
    """Make the MODEL on the wire trainable while the context lasts, outside inference mode.

    LoRA patches and object patches of the wire are part of the model that is trained on. Base weights are frozen.

    Args:
        model: a ModelPatcher.
        precision: compute dtype: ``bf16``, ``fp32``, or ``auto`` (bf16 where the host finds it fast).
        offload: whether weights of blocks are kept on the CPU: ``on``, ``off``, or ``auto`` (where they do not fit).
        limit: bytes of the device that may be taken; 0 is what there is.

    Yields:
        The trainee, loaded.

    Raises:
        ValueError: the precision is unknown, or the model cannot be trained; says why and what to do.
        RuntimeError: another training is running, or the host cannot load the model.
    """
    global _is_training
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: use one of {', '.join(PRECISIONS)}")
    refuse_untrainable(model)
    if _is_training:
        raise RuntimeError("a training is running already in this ComfyUI: wait for it to end")
    with ExitStack() as stack:
        _is_training = True
        on_exit(stack, _end_training)
        residents = unload(model)
        on_exit(stack, lambda: reload_all(residents))
        _set_host_flags(stack)
        stack.enter_context(torch.inference_mode(False))
        clone = _training_clone(model)
        residence = Residence(clone)
        on_exit(stack, residence.release)
        dtype = _set_compute_dtype(clone, precision)
        residence.begin(offload, limit)
        on_exit(stack, forwards_of(clone.model))
        stack.enter_context(differentiable_rope())
        made = Trainee(clone, residence, dtype)
        on_exit(stack, made.close)
        yield made


def _end_training() -> None:
    global _is_training
    _is_training = False


def _set_host_flags(stack: ExitStack) -> None:
    import comfy.model_management as mm
    from comfy.cli_args import args

    # Absent on old hosts, where the extra attribute is harmless.
    replace(stack, mm, "in_training", True)
    # Streams hand out views of reused buffers, which autograd would save.
    if hasattr(mm, "NUM_STREAMS"):
        replace(stack, mm, "NUM_STREAMS", 0)
    for flag in ("disable_comfy_compiler", "disable_cuda_graphs"):
        if hasattr(args, flag):
            replace(stack, args, flag, True)


def _training_clone(model: Any) -> Any:
    if is_dynamic(model):
        try:
            clone = model.clone(disable_dynamic=True, force_deepcopy=True)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                "the loader of this MODEL cannot make the copy that training needs under dynamic "
                f"VRAM ({error}): start ComfyUI with --disable-dynamic-vram, or use a core loader"
            ) from error
    else:
        clone = model.clone()
    clone.additional_models.pop("multigpu", None)
    clone.model_options.pop("multigpu_clones", None)
    return clone


def _set_compute_dtype(patcher: Any, precision: str) -> torch.dtype:
    import comfy.model_management as mm

    if precision == "auto":
        precision = "bf16" if mm.should_use_bf16(patcher.load_device) else "fp32"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    now = patcher.get_model_object("manual_cast_dtype") or patcher.model.get_dtype()
    if now != dtype:
        patcher.set_model_compute_dtype(dtype)
    return dtype
