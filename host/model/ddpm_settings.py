# SPDX-License-Identifier: Apache-2.0
"""Settings of a pixel diffusion model that is made anew, from a few numbers."""

import math
from dataclasses import replace
from typing import Any

from ...plain import plain
from .ddpm import Ddpm, needed, prediction

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
# Ho et al. 2020, and Rombach et al. 2022; the third has no use for them.
_BETAS = {
    "linear": {"beta_start": 0.0001, "beta_end": 0.02},
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012},
}


def described(model: Any) -> str:
    """What a pixel diffusion MODEL is, in a line."""
    facts = needed(model)
    count = sum(p.numel() for p in model.model.parameters())
    width, height = facts.size
    color = "gray" if facts.channels == 1 else "color"
    classes = f"{facts.classes} classes" if facts.embedded else "no classes"
    if facts.unlabelled is not None:
        classes += " and one for none"
    schedule = facts.scheduler.get("beta_schedule", "linear")
    kind = f"{width} x {height} px, {color}, {classes}; {schedule}, {prediction(facts.scheduler)}"
    return f"{kind}; {count:,} parameters"


def settings(
    *,
    size: int,
    channels: int,
    width: int,
    levels: str,
    layers: int,
    classes: int,
    unlabelled: bool,
    schedule: str,
    predicts: str,
) -> Ddpm:
    """What a new model shall be.

    Args:
        size: Side of its pictures in pixels.
        channels: 1 or 3.
        width: Channels of the first level.
        levels: Channels of each level as multiples of that, with commas between; attention is on the last two, and
            each level but the last halves the picture.
        layers: Residual blocks of a level.
        classes: How many there are; 0 for none.
        unlabelled: Whether there is one for no class, too.
        schedule: The library's name of the schedule.
        predicts: What the network predicts.

    Raises:
        ValueError: They do not go together.
    """
    unet = _unet(size, channels, [width * times for times in _levels(levels, size)], layers)
    if classes:
        unet["num_class_embeds"] = classes + unlabelled
    scheduler = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 1000,
        **_BETAS.get(schedule, _BETAS["linear"]),
        "beta_schedule": schedule,
        "prediction_type": predicts,
        "clip_sample": True,
        "clip_sample_range": 1.0,
    }
    facts = Ddpm(unet, scheduler)
    return replace(facts, unlabelled=classes if classes and unlabelled else None)


def _levels(text: str, size: int) -> list[int]:
    """The multiples of ``1,2,2``, of which each but the last halves pictures of ``size``."""
    try:
        times = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"levels is {plain(text, 80)!r}; give whole numbers with commas, 1,2,2 say."
        ) from error
    step = 2 ** (len(times) - 1)
    if size % step:
        raise ValueError(
            f"Pictures of {size} px cannot be halved {len(times) - 1} times: take a size that {step} divides, or "
            "fewer levels."
        )
    return times


def _unet(size: int, channels: int, widths: list[int], layers: int) -> dict[str, Any]:
    attends = [i >= len(widths) - 2 and i > 0 for i in range(len(widths))]
    return {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        "norm_num_groups": math.gcd(32, *widths),
        "attention_head_dim": math.gcd(8, *widths),
    }
