# SPDX-License-Identifier: Apache-2.0
"""LoRA: W = W0 + (alpha / rank) up down (Hu et al. 2021, eq. 3; arXiv 2106.09685).

On a convolution, ``down`` has the module's kernel, stride and padding and ``up`` is 1x1 (LoCon).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..registry import check_limits, option
from . import NETWORKS
from .base import Layer
from .pair import Kept, Pair, nearest
from .targets import kind


@NETWORKS.register("lora")
@dataclass(frozen=True)
class LoRA:
    """Settings of a LoRA network."""

    rank: int = option(
        16, "Inner dimension: larger learns more and makes a larger file.", min=1, max=4096
    )
    alpha: float = option(
        0.0,
        "Scale numerator: dW is multiplied by alpha / rank. 0 means the rank.",
        min=0.0,
        max=4096.0,
    )
    blocks: str = option(
        "attention",
        "Which layers are trained: presets (all, transformer, attention, cross-attention) and patterns.",
    )

    def __post_init__(self) -> None:
        check_limits(self)

    def build(self, module: nn.Module, generator: torch.Generator) -> Layer:
        """A ``LoraLayer`` for a linear or convolution module."""
        return LoraLayer(module, self.rank, self.alpha or float(self.rank), generator)


class LoraLayer(Layer):
    """``down`` is ``[rank, in, *kernel]``, ``up`` is ``[out, rank, *1]``, ``alpha`` a number."""

    def __init__(
        self, module: nn.Module, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.alpha, self.scale = alpha, alpha / rank
        given: Any = module  # by what it has: see `kind`
        if kind(module) == "linear":
            shape: tuple[int, ...] = (rank, int(given.in_features))
            out: tuple[int, ...] = (int(given.out_features), rank)
            self.conv: Any = None
        else:
            groups = given.groups
            if groups != 1:
                raise ValueError(
                    f"A convolution with {groups} groups cannot take a LoRA; leave it out of blocks."
                )
            if given.padding_mode != "zeros":
                raise ValueError(
                    f"A convolution padded with '{given.padding_mode}' cannot take a LoRA."
                )
            kernel = tuple(given.kernel_size)
            shape = (rank, int(given.in_channels), *kernel)
            out = (int(given.out_channels), rank) + (1,) * len(kernel)
            self.conv = (
                getattr(F, f"conv{len(kernel)}d"),
                given.stride,
                given.padding,
                given.dilation,
            )
        bound = 1.0 / math.sqrt(math.prod(shape[1:]))
        down = (torch.rand(shape, generator=generator) * 2 - 1) * bound
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(out))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """``y`` plus the low-rank path of ``x``, computed in the dtype of ``x``."""
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if self.conv is None:
            inner = F.linear(x, down)
            return y + F.linear(inner * self.scale, up)
        convolve, stride, padding, dilation = self.conv
        inner = convolve(x, down, None, stride, padding, dilation)
        return y + convolve(inner * self.scale, up)

    def tensors(self) -> dict[str, torch.Tensor]:
        """``lora_up.weight``, ``lora_down.weight`` and ``alpha``, the names of kohya and ComfyUI."""
        return {
            "lora_up.weight": self.up,
            "lora_down.weight": self.down,
            "alpha": torch.tensor(self.alpha),
        }

    def change_norm(self) -> float:
        """``|s U D|^2 = s^2 tr((U^T U) (D D^T))``, from two rank x rank matrices in fp64.

        A convolution's dW is U D with the kernel of D flattened, as U is 1x1.
        """
        up = self.up.detach().to("cpu", torch.float64).flatten(1)
        down = self.down.detach().to("cpu", torch.float64).flatten(1)
        square = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0.0)
        return abs(self.scale) * float(square.sqrt())

    def begin(self, pair: Pair) -> Kept | None:
        """Start with a change: as it is, alpha too, where the rank is the same, else with the nearest of this rank.

        A direction that neither factor has would never get a gradient: there ``down`` stays as it was drawn.

        Args:
            pair: The change.

        Returns:
            How much of it was kept, None where it was taken over as it is.

        Raises:
            ValueError: The layer is of another shape.
        """
        sides = (self.up.shape[0], self.down[0].numel())
        came = (pair.up.shape[0], pair.down.shape[1])
        if came != sides:
            raise ValueError(f"expected a change of shape {list(sides)}, got {list(came)}.")
        if pair.alpha == 0:
            return None
        down, up, kept = pair.down, pair.up, None
        if pair.rank == self.down.shape[0]:
            self.take_alpha(pair.alpha)
        else:
            down, up, kept = nearest(pair, self.down.shape[0], self.scale)
        with torch.no_grad():
            lives = (down != 0).any(1) | (up != 0).any(0)
            n = len(lives)
            self.down.flatten(1)[:n][lives] = down[lives].to(self.down)
            self.up.zero_()
            self.up.flatten(1)[:, :n] = up.to(self.up)
        return kept

    def take_alpha(self, alpha: float) -> None:
        """Use this alpha instead of the settings'."""
        self.alpha, self.scale = alpha, alpha / self.down.shape[0]

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over ``lora_up.weight`` and ``lora_down.weight``; alpha must be the same."""
        for key, parameter in (("lora_up.weight", self.up), ("lora_down.weight", self.down)):
            if key not in tensors or tensors[key].shape != parameter.shape:
                came = "nothing" if key not in tensors else f"shape {list(tensors[key].shape)}"
                raise ValueError(f"{key}: expected shape {list(parameter.shape)}, got {came}.")
            with torch.no_grad():
                parameter.copy_(tensors[key])
        if "alpha" in tensors and float(tensors["alpha"]) != self.alpha:
            raise ValueError(
                f"alpha is {float(tensors['alpha'])} in the state and {self.alpha} in the settings."
            )
