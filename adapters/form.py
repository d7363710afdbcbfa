# SPDX-License-Identifier: Apache-2.0
"""The linear map that a module is, whatever class it has: its shape, and how to apply another weight like its own."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .targets import kind


@dataclass(frozen=True)
class Form:
    """A linear layer or a convolution.

    Attributes:
        rows: Outputs.
        inputs: Inputs, or input channels.
        kernel: Of a convolution; empty for a linear layer.
        how: Stride, padding and dilation of a convolution.
    """

    rows: int
    inputs: int
    kernel: tuple[int, ...] = ()
    how: tuple[Any, ...] = ()

    @classmethod
    def of(cls, module: nn.Module, what: str) -> "Form":
        """The form of a module.

        Args:
            module: A linear layer or a convolution, by what it has: see ``kind``.
            what: The adapter, for messages.

        Raises:
            ValueError: A convolution that no adapter fits.
        """
        given: Any = module
        if kind(module) == "linear":
            return cls(int(given.out_features), int(given.in_features))
        if given.groups != 1:
            raise ValueError(
                f"A convolution with {given.groups} groups cannot take {what}; leave it out of blocks."
            )
        if given.padding_mode != "zeros":
            raise ValueError(
                f"A convolution padded with '{given.padding_mode}' cannot take {what}."
            )
        sizes = (int(given.out_channels), int(given.in_channels), tuple(given.kernel_size))
        return cls(*sizes, (given.stride, given.padding, given.dilation))

    @property
    def columns(self) -> int:
        """Columns of the flattened weight."""
        return self.inputs * self.area

    @property
    def area(self) -> int:
        """Entries of the kernel."""
        product = 1
        for side in self.kernel:
            product *= int(side)
        return product

    @property
    def reach(self) -> tuple[int, ...]:
        """How far a kernel reaches, with its dilation."""
        dilation = self.how[2] if self.how else ()
        pairs = zip(dilation, self.kernel, strict=True)
        return tuple(int(d) * (int(side) - 1) + 1 for d, side in pairs)

    @property
    def ones(self) -> tuple[int, ...]:
        """A kernel of one entry."""
        return (1,) * len(self.kernel)

    @property
    def axis(self) -> int:
        """Where channels are in what comes in and goes out."""
        return -1 - len(self.kernel)

    def apply(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """What the module would do with another weight and no bias.

        Args:
            x: ``[..., in]`` or ``[B, in, *size]``.
            weight: ``[n, in, *kernel]``.

        Returns:
            ``[..., n]`` or ``[B, n, *size]``.
        """
        return convolved(x, weight, *self.how) if self.kernel else F.linear(x, weight)

    def point(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The same of a kernel of one entry, ``[n, in]`` or ``[n, in, *ones]``, at every place."""
        if not self.kernel:
            return F.linear(x, weight)
        return convolved(x, weight.reshape(*weight.shape[:2], *self.ones), 1, 0, 1)

    def channels(self, values: torch.Tensor) -> torch.Tensor:
        """A value a channel, ``[..., n]``, so that it multiplies what comes in or goes out."""
        return values.reshape(*values.shape, *self.ones)


def convolved(
    x: torch.Tensor, weight: torch.Tensor, stride: Any, padding: Any, dilation: Any
) -> torch.Tensor:
    """A convolution of as many dimensions as the weight has, without a bias."""
    convolve: Any = getattr(F, f"conv{weight.ndim - 2}d")
    result: torch.Tensor = convolve(x, weight, None, stride, padding, dilation)
    return result
