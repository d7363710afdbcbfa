# SPDX-License-Identifier: Apache-2.0
"""The frozen weight of a module, for adapters that depend on it, whatever the host stores it in."""

import torch
from torch import nn


def readable(module: nn.Module) -> torch.Tensor | None:
    """The weight of a module; None for one that is quantised with scales, elsewhere or not there."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or type(weight).__name__ == "QuantizedTensor":
        return None
    is_scaled = getattr(module, "scale_weight", None) is not None
    if weight.is_meta or is_scaled or not weight.is_floating_point():
        return None
    return weight.detach()


def needed(module: nn.Module, what: str) -> torch.Tensor:
    """The weight of a module, where and as it is stored.

    Args:
        module: Any layer.
        what: The adapter that needs it, for the message.

    Raises:
        ValueError: It cannot be read.
    """
    weight = readable(module)
    if weight is None:
        raise ValueError(
            f"Its weight is quantised or not there, and {what} depends on it: load the model in bf16, fp16 or plain "
            "fp8, or choose the network 'lora'."
        )
    return weight


def matrix(module: nn.Module, what: str) -> torch.Tensor:
    """The weight of a module as an fp32 matrix ``[out, in * kernel]``, where it is stored.

    Args:
        module: A linear layer or a convolution.
        what: The adapter that needs it, for the message.

    Raises:
        ValueError: It cannot be read.
    """
    return needed(module, what).float().flatten(1)


def bias(module: nn.Module) -> torch.Tensor | None:
    """A copy of a module's bias in fp32, ``[out]``, None without one."""
    found = getattr(module, "bias", None)
    if not isinstance(found, torch.Tensor) or found.is_meta:
        return None
    return found.detach().to(torch.float32, copy=True)
