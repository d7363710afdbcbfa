# SPDX-License-Identifier: Apache-2.0
"""What every adapter offers: settings that build a layer for a module, and the layer."""

from typing import Protocol

import torch
from torch import nn


class Layer(nn.Module):
    """The trainable part attached to one module; its parameters are fp32.

    ``forward`` returns the adapted output from the module's input ``x`` and base output ``y``.
    """

    def tensors(self) -> dict[str, torch.Tensor]:
        """Tensors by the suffix under which files keep them (``lora_up.weight``, ``alpha``, ...)."""
        raise NotImplementedError

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what ``tensors()`` gave.

        Raises:
            ValueError: A tensor is absent or has another shape.
        """
        raise NotImplementedError

    def change_norm(self) -> float | None:
        """The Frobenius norm of dW, found without dW itself; None where the kind has no such form."""
        return None


class Network(Protocol):
    """Settings of an adapter: a frozen dataclass registered in ``NETWORKS``."""

    @property
    def blocks(self) -> str:
        """Which layers are trained, in the block language."""

    def build(self, module: nn.Module, generator: torch.Generator) -> Layer:
        """A layer for a linear or convolution module, with no effect before training."""
