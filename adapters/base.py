# SPDX-License-Identifier: Apache-2.0
"""What every adapter offers: settings that build a layer for a module, and the layer."""

from typing import Protocol

import torch
from torch import nn

from .pair import Kept, Pair


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

    def begin(self, pair: Pair) -> Kept | None:
        """Start with a change of the layer instead of none.

        Args:
            pair: The change.

        Returns:
            How much of it was kept, None where it was taken over as it is.

        Raises:
            ValueError: This kind of network cannot begin so, or the shapes are others.
        """
        raise ValueError(
            f"{type(self).__name__} cannot begin with a LoRA; choose the network 'lora', or disconnect start_from."
        )

    def take_alpha(self, alpha: float) -> None:
        """Use the scale that a state was trained with; kinds without one have nothing to take."""

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
