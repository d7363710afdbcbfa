# SPDX-License-Identifier: Apache-2.0
"""The MODEL on the wire, made trainable for a while: a loaded clone with normal weights, and nothing else changed.

Everything this module patches in the host is given back when the context ends, also when the body or the entry
raises. The weights keep their values: samples after training equal samples before, bit for bit.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .checkpointing import Checkpointing
from .denoiser import HostDenoiser, differentiable_rope

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "bf16", "fp32")
MISSING = object()
ALL_MEMORY = 1e20  # bytes: the host unloads every other model for this
_is_training = False


class Trainee:
    """A training clone, loaded. Valid inside `trainee` only.

    Args:
        patcher: the clone.
        compute_dtype: dtype of activations.

    Attributes:
        patcher: the clone (a ModelPatcher); sample with it to see what was trained so far.
        model: its BaseModel.
        diffusion_model: the network; adapters are attached to its modules.
        device: where the weights are.
        compute_dtype: dtype of activations.
        denoiser: D(x; sigma, cond).
        latent_format: the model's latent format.
    """

    def __init__(self, patcher: Any, compute_dtype: torch.dtype):
        self.patcher = patcher
        self.model = patcher.model
        self.diffusion_model: nn.Module = patcher.model.diffusion_model
        self.device: torch.device = patcher.load_device
        self.compute_dtype = compute_dtype
        self.latent_format = patcher.model.latent_format
        self.denoiser = HostDenoiser(patcher)
        self._checkpointing = Checkpointing(self.diffusion_model)

    def checkpointing(self, on: bool) -> None:
        """Switch gradient checkpointing by block on or off; adapters may be attached before or after."""
        if on:
            self._checkpointing.on()
        else:
            self._checkpointing.off()

    @property
    def is_checkpointed(self) -> bool:
        """Whether gradient checkpointing is on."""
        return self._checkpointing.is_on

    def reload(self) -> None:
        """Load the weights fully again, after something else (a VAE, a sampler) may have evicted them.

        Raises:
            RuntimeError: the host keeps part of the weights offloaded.
        """
        _load(self.patcher)

    def close(self) -> None:
        """Take checkpointing and hooks off the network."""
        self._checkpointing.off()
        self.denoiser.close()


@contextmanager
def trainee(model: Any, *, precision: str = "auto") -> Iterator[Trainee]:
    """Make the MODEL on the wire trainable while the context lasts, outside inference mode.

    LoRA patches and object patches of the wire are part of the model that is trained on. Base weights are frozen.

    Args:
        model: a ModelPatcher.
        precision: compute dtype: ``bf16``, ``fp32``, or ``auto`` (bf16 where the host finds it fast).

    Yields:
        The trainee, loaded.

    Raises:
        ValueError: the precision is unknown, or the model cannot be trained; says why and what to do.
        RuntimeError: another training is running, or the host cannot load the model fully.
    """
    global _is_training
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: use one of {', '.join(PRECISIONS)}")
    refuse_untrainable(model)
    if _is_training:
        raise RuntimeError("a training is running already in this ComfyUI: wait for it to end")
    with ExitStack() as stack:
        _is_training = True
        _on_exit(stack, _end_training)
        residents = _unload(model)
        _on_exit(stack, lambda: _reload_all(residents))
        _set_host_flags(stack)
        stack.enter_context(torch.inference_mode(False))
        clone = _training_clone(model)
        _on_exit(stack, lambda: _release(clone))
        _own_weights(clone)
        dtype = _set_compute_dtype(clone, precision)
        _load(clone)
        _on_exit(stack, _forwards_of(clone.model))
        stack.enter_context(differentiable_rope())
        made = Trainee(clone, dtype)
        _on_exit(stack, made.close)
        yield made


def refuse_untrainable(model: Any) -> None:
    """Raise for a MODEL that cannot be trained.

    Args:
        model: a ModelPatcher.

    Raises:
        ValueError: names what is in the way and what to do.
    """
    if getattr(model, "hook_patches", None) or getattr(model, "forced_hooks", None):
        raise ValueError(
            "the MODEL carries hooks (scheduled LoRAs or weights): connect the model from before "
            "the hook nodes; a LoRA from a plain Load LoRA node is fine"
        )
    compiled = _compiled_part(model)
    if compiled:
        raise ValueError(
            f"the MODEL is compiled ({compiled}): connect the model from before the compile node"
        )
    base = model.model
    parts = (base, base.latent_format, model.get_model_object("model_sampling"))
    for cls in (c for part in parts for c in type(part).__mro__):
        if cls.__name__.endswith("AV"):
            raise ValueError(
                f"{type(base).__name__} has nested audio-video latents, which cannot be trained: "
                "use a model with one latent"
            )
    for name, module in base.diffusion_model.named_modules():
        problem = _untrainable(module)
        if problem:
            raise ValueError(f"{type(base).__name__} cannot be trained: layer {name} {problem}")


def _compiled_part(model: Any) -> str | None:
    from comfy.patcher_extension import WrappersMP

    for name, patch in model.object_patches.items():
        if hasattr(patch, "_orig_mod"):
            return f"object patch {name}"
    wrappers = [getattr(model, "wrappers", {})]
    wrappers.append(model.model_options.get("transformer_options", {}).get("wrappers", {}))
    for kinds in wrappers:
        for key, functions in kinds.get(WrappersMP.APPLY_MODEL, {}).items():
            if key and "compile" in str(key) and functions:
                return f"wrapper {key}"
    for name, module in model.model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None):
            return f"module {name or type(module).__name__}"
    return None


def _untrainable(module: nn.Module) -> str | None:
    import comfy.ops

    faster = "start ComfyUI without --fast, or load the model with weight_dtype default"
    for kind in ("fp8_ops", "cublas_ops"):
        cls = getattr(getattr(comfy.ops, kind, None), "Linear", None)
        if cls is not None and isinstance(module, cls):
            return f"multiplies in {kind.split('_')[0]}, which has no gradient: {faster}"
    multiply = getattr(type(module), "forward_comfy_cast_weights", None)
    if multiply is not None and inspect.isfunction(multiply) and multiply.__closure__:
        if inspect.getclosurevars(multiply).nonlocals.get("fp8_matrix_mult"):
            return f"multiplies in fp8, which has no gradient: {faster}"
    for p in module._parameters.values():
        if p is None:
            continue
        kind = type(p).__name__
        if kind == "QuantizedTensor":
            if not hasattr(comfy.ops, "QuantLinearFunc"):
                return (
                    "is quantised, which this ComfyUI cannot train: use the unquantised model "
                    "(bf16, fp16 or plain fp8), or update ComfyUI"
                )
        elif not p.is_floating_point() and p.numel():
            return (
                f"is quantised ({kind}, {str(p.dtype)[6:]}), which cannot be trained: "
                "use the unquantised model (bf16, fp16 or plain fp8)"
            )
    return None


def _on_exit(stack: ExitStack, undo: Callable[[], object]) -> None:
    """Run ``undo`` at the end; its own error never hides the one that ended the training."""

    def leave(kind: Any, error: Any, trace: Any) -> None:
        try:
            undo()
        except Exception:
            if kind is None:
                raise
            logger.exception("giving back what the training had changed failed")

    stack.push(leave)


def _end_training() -> None:
    global _is_training
    _is_training = False


def _set_host_flags(stack: ExitStack) -> None:
    import comfy.model_management as mm
    from comfy.cli_args import args

    # Absent on old hosts, where the extra attribute is harmless.
    _set(stack, mm, "in_training", True)
    # Streams hand out views of reused buffers, which autograd would save.
    if hasattr(mm, "NUM_STREAMS"):
        _set(stack, mm, "NUM_STREAMS", 0)
    for flag in ("disable_comfy_compiler", "disable_cuda_graphs"):
        if hasattr(args, flag):
            _set(stack, args, flag, True)


def _set(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    old = getattr(owner, name, MISSING)
    setattr(owner, name, value)
    _on_exit(stack, lambda: delattr(owner, name) if old is MISSING else setattr(owner, name, old))


def _unload(model: Any) -> list[Any]:
    """Unload this model and its clones; returns the patchers that were loaded."""
    import comfy.model_management as mm

    if _is_dynamic(model):
        return []  # trained on a copy: the host itself makes room for it
    residents = []
    # The originals may be inference tensors, which are put back in inference mode only.
    with torch.inference_mode():
        for index in reversed(range(len(mm.current_loaded_models))):
            loaded = mm.current_loaded_models[index]
            patcher = loaded.model
            if patcher is not None and patcher.is_clone(model):
                mm.current_loaded_models.pop(index)
                loaded.model_unload()
                residents.append(patcher)
        if model.model.current_weight_patches_uuid is not None:
            model.detach()
    return residents


def _reload_all(patchers: list[Any]) -> None:
    import comfy.model_management as mm

    for patcher in patchers:
        try:
            mm.load_models_gpu([patcher])
        except Exception as error:  # noqa: BLE001 - the host loads it when it is needed
            logger.warning("a model could not be loaded again after the training: %s", error)
            return


def _is_dynamic(model: Any) -> bool:
    return bool(getattr(model, "is_dynamic", bool)())


def _training_clone(model: Any) -> Any:
    if _is_dynamic(model):
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


def _own_weights(patcher: Any) -> None:
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


def _set_compute_dtype(patcher: Any, precision: str) -> torch.dtype:
    import comfy.model_management as mm

    if precision == "auto":
        precision = "bf16" if mm.should_use_bf16(patcher.load_device) else "fp32"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    now = patcher.get_model_object("manual_cast_dtype") or patcher.model.get_dtype()
    if now != dtype:
        patcher.set_model_compute_dtype(dtype)
    return dtype


def _load(patcher: Any) -> None:
    import comfy.model_management as mm

    with torch.inference_mode(False), torch.no_grad():
        mm.load_models_gpu([patcher], memory_required=ALL_MEMORY, force_full_load=True)
        _own_weights(patcher)
    if patcher.model.model_lowvram:
        raise RuntimeError(
            "ComfyUI keeps part of the model offloaded, which cannot be trained: start it without "
            "--novram, or use a smaller model"
        )
    for p in patcher.model.parameters():
        p.requires_grad_(False)
    patcher.model.current_patcher = patcher


def _release(patcher: Any) -> None:
    """Unload the clone: patched weights back, the model on its offload device, no gradients."""
    import comfy.model_management as mm

    for index in reversed(range(len(mm.current_loaded_models))):
        if mm.current_loaded_models[index].model is patcher:
            loaded = mm.current_loaded_models.pop(index)
            if loaded.model_finalizer is not None:
                loaded.model_finalizer.detach()
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


def _forwards_of(model: nn.Module) -> Callable[[], None]:
    """Remember the replaced forwards of now; the returned function goes back to them."""
    before = {module: module.__dict__.get("forward", MISSING) for module in model.modules()}

    def restore() -> None:
        for module, forward in before.items():
            if module.__dict__.get("forward", MISSING) is forward:
                continue
            if forward is MISSING:
                del module.forward
            else:
                module.forward = forward

    return restore
