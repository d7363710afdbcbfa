# SPDX-License-Identifier: Apache-2.0
"""What guidance compares with, of what is on the wires: a picture, or a text that CLIP can compare with pictures."""

from __future__ import annotations

from typing import Any

import torch

from ...samplers.guidance import Loss, Target

_ROWS = (0.02, 50.0)  # median length of the rows of a projection that was trained


def of_wires(loss: Loss, text: str, image: Any, clip: Any, vision: Any) -> Target:
    """What a loss compares with, of what is connected.

    Args:
        loss: What the picture is measured by.
        text: A text.
        image: IMAGE, or None.
        clip: A CLIP, or None.
        vision: A CLIP_VISION, or None.

    Raises:
        ValueError: Something that it needs is not there; says what to do.
    """
    name = getattr(loss, "name", "this")
    if "target" in loss.needs:
        if image is None:
            raise ValueError(f"guidance {name} compares with a picture: connect one to image")
        return of_images(image)
    if "text" in loss.needs:
        lacking = [
            what
            for what, there in (("clip", clip), ("clip_vision", vision), ("text", text.strip()))
            if not there
        ]
        if lacking:
            raise ValueError(
                f"guidance {name} compares with a text, and lacks {' and '.join(lacking)}: connect a CLIP and the "
                "CLIP_VISION of the same CLIP, and write what the picture should show"
            )
        return of_text(text, clip, vision)
    return Target()


def of_images(images: torch.Tensor) -> Target:
    """A target of pictures.

    Args:
        images: IMAGE ``[b, h, w, 3]`` in 0..1.
    """
    with torch.inference_mode(False):
        kept = images[..., :3].detach().to("cpu", torch.float32, copy=True)
        return Target(images=kept.movedim(-1, 1).contiguous() * 2 - 1)


def of_text(text: str, clip: Any, vision: Any) -> Target:
    """A target of a text.

    Args:
        text: What the picture should show.
        clip: A CLIP.
        vision: A CLIP_VISION of the same CLIP.

    Raises:
        ValueError: The two were not trained together, as far as can be told; says what came and what to do.
    """
    wanted = projection_width(vision)
    with torch.no_grad():
        pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)[1]
    if pooled is None:
        raise ValueError(
            "this CLIP gives no embedding of a whole text (a T5 or a language model does not): connect a CLIP with "
            f"text vectors of {wanted} numbers, as the CLIP_VISION has"
        )
    if pooled.shape[-1] != wanted:
        raise ValueError(
            f"the CLIP makes text vectors of {pooled.shape[-1]} numbers, the CLIP_VISION picture vectors of {wanted}: "
            "connect the two halves of one CLIP (ViT-L has 768, ViT-H 1024, ViT-bigG, which SDXL's CLIP holds, 1280)"
        )
    _check_projection(clip, wanted)
    with torch.inference_mode(False):
        return Target(text=pooled[:1].detach().to("cpu", torch.float32, copy=True), vision=vision)


def projection_width(vision: Any) -> int:
    """How many numbers a CLIP_VISION makes of a picture that can be compared with a text.

    Raises:
        ValueError: It is a model of pictures only.
    """
    weight = getattr(getattr(vision.model, "visual_projection", None), "weight", None)
    if weight is None:
        raise ValueError(
            f"this CLIP_VISION ({type(vision.model).__name__}) was not trained beside a CLIP of texts (SigLIP and "
            "DINO are not): connect a CLIP ViT-L, ViT-H or ViT-bigG"
        )
    return int(weight.shape[0])


def _check_projection(clip: Any, width: int) -> None:
    """Files of SD1.5 leave the text projection out, which nothing but a comparison with pictures needs."""
    found = [
        (name, module.weight)
        for name, module in clip.cond_stage_model.named_modules()
        if name.endswith("text_projection") and module.weight.shape[0] == width
    ]
    if not found:
        return
    name, weight = next((pair for pair in found if "clip_g" in pair[0]), found[-1])
    weight = weight.detach().float().cpu()
    length = float(torch.linalg.vector_norm(weight, dim=1).median())
    is_identity = weight.shape[0] == weight.shape[1] and torch.equal(weight, torch.eye(width))
    if is_identity or not _ROWS[0] < length < _ROWS[1]:
        raise ValueError(
            f"the file of this CLIP has no text projection ({name}), without which texts cannot be compared with "
            "pictures; checkpoints of SD1.5 leave it out: load clip_l.safetensors with Load CLIP for the guidance"
        )
