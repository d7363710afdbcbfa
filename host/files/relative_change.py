# SPDX-License-Identifier: Apache-2.0
"""How much patches change the weights that they are for: |dW| / |W|."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch

_log = logging.getLogger(__name__)


def relative_change(
    patches: Mapping[Any, Any], weights: Mapping[str, torch.Tensor], model: Any, clip: Any
) -> float | None:
    """|dW| / |W| over all touched weights, Frobenius norms; None where it cannot be measured.

    Args:
        patches: What the host's loader made, by the weight's name, with an offset where it is for a part of it.
        weights: The models' weights by name.
        model: The host's ModelPatcher.
        clip: The host's CLIP, or None.
    """
    try:
        return _measured_change(patches, weights, model, clip)
    except (RuntimeError, NotImplementedError) as error:
        _log.warning("How much the LoRA changes the weights cannot be measured: %s", error)
        return None


def _measured_change(
    patches: Mapping[Any, Any], weights: Mapping[str, torch.Tensor], model: Any, clip: Any
) -> float | None:
    change, size = 0.0, 0.0
    for place, patch in patches.items():
        key, offset = (place, None) if isinstance(place, str) else (place[0], place[1])
        weight = _values(key, weights, model, clip)
        if weight is None:
            continue
        part = weight if offset is None else weight.narrow(*offset)
        squared = _change_squared(patch, weight, offset, key)
        if squared is not None:
            change += squared
            # No fp32 copy of the weight: dtype= sums in fp32 as it reads; fp8 has no such sum.
            part = part.float() if part.element_size() == 1 else part
            size += float(torch.linalg.vector_norm(part, dtype=torch.float32)) ** 2
    return math.sqrt(change / size) if size > 0 else None


def _change_squared(patch: Any, weight: torch.Tensor, offset: Any, key: str) -> float | None:
    import comfy.lora

    weights: tuple[Any, ...] = tuple(getattr(patch, "weights", ()))
    if getattr(patch, "name", "") == "lora" and all(w is None for w in weights[3:6]):
        up, down = (w.flatten(1).to("cpu", torch.float64) for w in weights[:2])
        scale = 1.0 if weights[2] is None else weights[2] / down.shape[0]
        # |B A|^2 = tr(B^T B A A^T), without the product of full size
        return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0)) * scale**2
    if isinstance(patch, tuple) and patch[0] == "diff":
        return float(torch.linalg.vector_norm(patch[1][0], dtype=torch.float32)) ** 2
    before = weight.float()
    after = comfy.lora.calculate_weight([(1.0, patch, 1.0, offset, None)], before.clone(), key)
    return float((after - before).norm()) ** 2 if after.shape == before.shape else None


def _values(
    key: str, weights: Mapping[str, torch.Tensor], model: Any, clip: Any
) -> torch.Tensor | None:
    import comfy.utils

    weight: Any = None
    for root in (model.model, getattr(clip, "cond_stage_model", None)):
        try:
            weight = comfy.utils.get_attr(root, key)
            break
        except AttributeError:
            continue
    if type(weight).__name__ == "QuantizedTensor":
        weight = weight.dequantize()
    elif weight is None or weight.is_meta:
        weight = weights.get(key)
    usable = weight is not None and not weight.is_meta and weight.is_floating_point()
    return weight.detach() if usable else None
