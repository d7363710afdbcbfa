# SPDX-License-Identifier: Apache-2.0
"""Which MODELs can be trained: what is in the way is named before anything is loaded."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from .limits import refuse_limited


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
    refuse_limited(model, "which is trained on as a whole only")
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
