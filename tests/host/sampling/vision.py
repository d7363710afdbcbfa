# SPDX-License-Identifier: Apache-2.0
"""A tiny CLIP_VISION of the host's own classes, with random weights."""

import json

import torch

from tests.host import tiny


def vision(folder, *, projection: int | None = 64, kind: str = "clip_vision_model", seed: int = 8):
    """A CLIP_VISION that looks at 32 x 32 pixels; ``folder`` takes the file that the host wants to read."""
    import comfy.clip_vision

    config = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "hidden_act": "quick_gelu",
        "num_channels": 3,
        "patch_size": 8,
        "image_size": 32,
        "model_type": kind,
    }
    if projection is not None:
        config["projection_dim"] = projection
    path = folder / "vision.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    with torch.inference_mode():
        made = comfy.clip_vision.ClipVisionModel(str(path))
        tiny.randomize(made.model, seed)
        return made


def likeness(made, images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Cosine of each image with a text, by the host's own preprocessing."""
    seen = made.encode_image(images, crop=True).image_embeds.float()
    return torch.nn.functional.cosine_similarity(seen, text.float(), dim=-1)
