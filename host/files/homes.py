# SPDX-License-Identifier: Apache-2.0
"""Names of layers that the host's LoRA loader reads, and which of them to use."""

from collections.abc import Mapping
from typing import Any

from ...loaders import base_width


def key_map(model: Any, clip: Any = None) -> dict[str, Any]:
    """The host's own map: what each name of a layer stands for, a weight's name or a part of one.

    Args:
        model: The host's ModelPatcher.
        clip: The host's CLIP, None where text encoders do not count.
    """
    import comfy.lora

    known: dict[str, Any] = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        known = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, known)
    return known


def preferred(known: Mapping[str, Any]) -> dict[str, str]:
    """For every name the one to use: ComfyUI's generic one, and where a part of a weight has none the first."""
    first: dict[Any, str] = {}
    for name, place in known.items():
        if _is_generic(name, place):
            first[place] = name
        else:
            first.setdefault(place, name)
    return {name: first[place] for name, place in known.items()}


def refuse_other_base(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a file that was made for a Stable Diffusion of another text width than the MODEL's.

    Raises:
        ValueError: Names both, with the widths.
    """
    root = model.model.diffusion_model
    widths = (
        (name, int(layer.in_features))
        for name, layer in root.named_modules()
        if name.endswith("attn2.to_k") and hasattr(layer, "in_features")
    )
    base_width.refuse_other(shapes, widths)


def _is_generic(name: str, place: Any) -> bool:
    if not isinstance(place, str):
        return False
    return name in (place, place.removesuffix(".weight")) or name == (
        f"text_encoders.{place.removesuffix('.weight')}"
    )
