# SPDX-License-Identifier: Apache-2.0
"""A DoRA's magnitudes from what is written for a loader that divides rows by |W0|: m = dora_scale |V| / |W0|.

V = W0 + (alpha / rank) up @ down; adapters/export.py has the other way.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from ..roles import MAGNITUDE, UP
from .content import Content, pair

FACT, BY_BASE, PLAIN = "graft.dora_scale", "m |W0| / |V|", "m"


def restored(
    content: Content, metadata: Mapping[str, str], weight: Callable[[str], torch.Tensor]
) -> tuple[Content, dict[str, str]]:
    """The adapter with its magnitudes as they were trained; itself where they are so already.

    Args:
        content: What was read.
        metadata: Of the file, which say how the magnitudes are written.
        weight: Gives the weight ``[out, in, *kernel]`` of a layer by its generic name.

    Returns:
        The adapter and its metadata.
    """
    if metadata.get(FACT) != BY_BASE:
        return content, dict(metadata)
    layers = {}
    for name, roles in content.layers.items():
        scale = roles.get(MAGNITUDE)
        if scale is not None and UP in roles and scale.shape[0] == roles[UP].shape[0]:
            rows, low = weight(name).to("cpu", torch.float32).flatten(1), pair(name, roles)
            changed = (rows + low.scale * (low.up @ low.down)).norm(dim=1)
            base = rows.norm(dim=1) + torch.finfo(torch.float32).eps
            made = (scale.float().flatten() * changed / base).reshape(scale.shape)
            roles = roles | {MAGNITUDE: made.to(scale.dtype)}
        layers[name] = roles
    return replace(content, layers=layers), {**metadata, FACT: PLAIN}
