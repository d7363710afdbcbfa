# SPDX-License-Identifier: Apache-2.0
"""The weight and bias of a layer as the host's layers use them: moved and cast to the input, with their functions."""

from __future__ import annotations

import torch
from torch import nn

from ...adapters.fused import own


def fetch(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """What a layer computes with on the input ``x``.

    Returns:
        Weight and bias, in the dtype and on the device of ``x``; None where they are not to be had so.
    """
    found = own(module, x)
    if found is not None or not hasattr(module, "comfy_cast_weights"):
        return found
    import comfy.ops

    weight, bias = comfy.ops.cast_bias_weight(module, x)
    return None if weight.is_inference() else (weight, bias)
