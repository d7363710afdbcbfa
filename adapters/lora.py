# SPDX-License-Identifier: Apache-2.0
"""LoRA: W = W0 + (alpha / rank) up down (Hu et al. 2021, eq. 3; arXiv 2106.09685).

On a convolution, ``down`` has the module's kernel, stride and padding and ``up`` is 1x1 (LoCon); with ``tucker`` the
kernel is in a core between them, ``mid``, and ``down`` is 1x1, too. With ``rslora`` the scale is alpha / sqrt(rank)
(Kalajdzievski 2023, eq. 4; arXiv 2312.03732), which the file keeps as another alpha.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from ..registry import option
from . import NETWORKS
from .base import Layer
from .form import Form
from .pair import Kept, Pair, nearest
from .settings import Ranked


@NETWORKS.register("lora")
@dataclass(frozen=True, repr=False)
class LoRA(Ranked):
    """Settings of a LoRA network."""

    dropout: float = option(
        0.0,
        "Share of the inner values that are left out of each picture, anew for every step; the others grow by as much. "
        "0.05 to 0.2 is usual.",
        min=0.0,
        max=0.99,
    )
    rank_dropout: float = option(
        0.0,
        "The same of whole ranks of a layer: one value of the rank is left out at all places of a picture.",
        min=0.0,
        max=0.99,
    )
    rslora: bool = option(
        False, "Scale by alpha / sqrt(rank), so that large ranks learn as fast as small ones."
    )
    tucker: bool = option(
        False,
        "Convolutions larger than 1x1 get a core of rank x rank x kernel between two 1x1: a much smaller file.",
    )

    def build(self, module: nn.Module, generator: torch.Generator) -> Layer:
        """A ``LoraLayer`` for a linear or convolution module."""
        form = Form.of(module, "a LoRA")
        rank, alpha = self.of(form)
        alpha *= math.sqrt(rank) if self.rslora else 1.0
        made = TuckerLayer if self.tucker and form.area > 1 else LoraLayer
        layer = made(form, rank, alpha, generator)
        layer.dropout, layer.rank_dropout = self.dropout, self.rank_dropout
        layer.module_dropout = self.module_dropout
        return layer


class LoraLayer(Layer):
    """``down`` is ``[rank, in, *kernel]``, ``up`` is ``[out, rank, *1]``, ``alpha`` a number."""

    files = {"lora_up.weight": "up", "lora_down.weight": "down"}
    dropout = rank_dropout = 0.0

    def __init__(self, form: Form, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.alpha, self.scale, self.form = alpha, alpha / rank, form
        self.down = nn.Parameter(uniform((rank, form.inputs, *self._kernel), generator))
        self.up = nn.Parameter(torch.zeros(form.rows, rank, *form.ones))

    @property
    def _kernel(self) -> tuple[int, ...]:
        return self.form.kernel

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """``y`` plus the low-rank path of ``x``, computed in the dtype of ``x``."""
        return y + self.whole(self.change(x))

    def change(self, x: torch.Tensor) -> torch.Tensor:
        """The low-rank path of ``x``."""
        inner = self.dropped(self.inner(x))
        return self.form.point(inner * self.scale, self.up.to(x.dtype))

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        """``down`` of ``x``, in its dtype: ``[..., rank]`` or ``[B, rank, *size]``."""
        return self.form.apply(x, self.down.to(x.dtype))

    def dropped(self, inner: torch.Tensor) -> torch.Tensor:
        """``inner`` without what is dropped out; as it is outside of training.

        Each picture's values are dropped independently (``dropout``), and its ranks (``rank_dropout``).
        """
        if not (self.training and self.masks.is_on):
            return inner
        if self.dropout:
            kept = self.masks.kept(len(inner), inner.shape[1:], self.dropout, "inner")
            inner = inner * kept.to(inner) / (1 - self.dropout)
        if self.rank_dropout:
            ranks = inner.shape[self.form.axis]
            kept = self.masks.kept(len(inner), (ranks,), self.rank_dropout, "ranks")
            between = (1,) * (inner.ndim - 2 - len(self.form.kernel))
            kept = self.form.channels(kept.reshape(len(inner), *between, ranks))
            inner = inner * kept.to(inner) / (1 - self.rank_dropout)
        return inner

    def flat(self) -> torch.Tensor:
        """``down`` as a matrix ``[rank, in * kernel]``, fp64 on the CPU."""
        return self.down.detach().to("cpu", torch.float64).flatten(1)

    def tensors(self) -> dict[str, torch.Tensor]:
        """``lora_up.weight``, ``lora_down.weight`` and ``alpha``, the names of kohya and ComfyUI."""
        return super().tensors() | {"alpha": torch.tensor(self.alpha)}

    def change_norm(self) -> float | None:
        """``|s U D|^2 = s^2 tr((U^T U) (D D^T))``, from two rank x rank matrices in fp64.

        A convolution's dW is U D with the kernel of D flattened, as U is 1x1.
        """
        up, down = self.up.detach().to("cpu", torch.float64).flatten(1), self.flat()
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
        sides = (self.form.rows, self.form.columns)
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
        super().load(tensors)
        check_alpha(tensors, self.alpha)


class TuckerLayer(LoraLayer):
    """``down`` is ``[rank, in, *1]``, ``mid`` is ``[rank, rank, *kernel]``, ``up`` is ``[out, rank, *1]``."""

    files = {**LoraLayer.files, "lora_mid.weight": "mid"}

    def __init__(self, form: Form, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__(form, rank, alpha, generator)
        self.mid = nn.Parameter(uniform((rank, rank, *form.kernel), generator))

    @property
    def _kernel(self) -> tuple[int, ...]:
        return self.form.ones

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        """``mid`` of ``down`` of ``x``."""
        low = self.form.point(x, self.down.to(x.dtype))
        return self.form.apply(low, self.mid.to(x.dtype))

    def flat(self) -> torch.Tensor:
        """``mid`` and ``down`` as one matrix ``[rank, in * kernel]``, fp64 on the CPU."""
        mid = self.mid.detach().to("cpu", torch.float64).flatten(2)
        return torch.einsum("mnk,ni->mik", mid, super().flat()).flatten(1)

    def begin(self, pair: Pair) -> Kept | None:
        """A change of any shape has no core.

        Raises:
            ValueError: Always.
        """
        raise ValueError("A convolution with a core cannot begin with a LoRA; set tucker=no.")


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """U(-1, 1) / sqrt(fan_in): kaiming_uniform with a = sqrt(5), as kohya and PEFT have it."""
    bound = 1.0 / math.sqrt(math.prod(shape[1:]))
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound


def check_alpha(tensors: dict[str, torch.Tensor], alpha: float) -> None:
    """Whether a state's alpha is the settings'.

    Raises:
        ValueError: It is another one.
    """
    if "alpha" in tensors and float(tensors["alpha"]) != torch.tensor(alpha).item():
        raise ValueError(
            f"alpha is {float(tensors['alpha'])} in the state and {alpha} in the settings."
        )
