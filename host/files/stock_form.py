# SPDX-License-Identifier: Apache-2.0
"""What a training keeps, as this host's own LoRA loader applies it."""

from collections.abc import Mapping
from typing import Any

import torch

from ...adapters import export
from ...adapters.learned import TEXT
from ...loaders.writing.magnitudes import BY_BASE, PLAIN
from .patched_weights import patched

_SCALE = ".dora_scale"


def exported(model: Any, clip: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a training keeps, as the stock loader applies it exactly to this MODEL and CLIP.

    Args:
        model: The MODEL on the wire, loaded or not; its patches are part of the weights that were trained on.
        clip: The CLIP on the wire, likewise.
        tensors: What ``attach`` gave.

    Returns:
        Tensors by the names of files; see ``adapters.export``.
    """
    if not any(key.endswith(export.MARKS) for key in tensors):
        return dict(tensors)
    with torch.inference_mode(False), torch.no_grad():
        patches = model.get_key_patches("diffusion_model.")
        if any(key.startswith(TEXT) for key in tensors):
            of_text = clip.patcher.get_key_patches()
            patches |= {f"{TEXT}{key}": patch for key, patch in of_text.items()}

        def weight(key: str) -> torch.Tensor:
            return patched(patches[key], key) if key in patches else torch.empty(0)

        return export.exported(tensors, weight, divides_by_base())


def facts(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """What a file's metadata say of how its DoRA is written, where it is one with a change of its own."""
    scaled = {key.removesuffix(_SCALE) for key in tensors if key.endswith(_SCALE)}
    if not any(bool(tensors[f"{name}.lora_up.weight"].any()) for name in scaled):
        return {}
    return {"dora_scale": BY_BASE if divides_by_base() else PLAIN}


def divides_by_base() -> bool:
    """Whether this host scales the rows of a DoRA by |W0| instead of |V|, found by one of a single number.

    W0 = 1, dW = 1 and dora_scale = 1 make 1 / |V| V = 1, or 1 / |W0| V = 2.
    """
    import comfy.lora

    one = torch.ones(1, 1)
    parts = {"a.lora_up.weight": one, "a.lora_down.weight": one, "a.dora_scale": one}
    patch = comfy.lora.load_lora(parts, {"a": "a"}, log_missing=False)["a"]
    made = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], one.clone(), "a")
    return float(made) > 1.5
