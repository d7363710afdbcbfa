# SPDX-License-Identifier: Apache-2.0
"""LoRA: W = W0 + (alpha / rank) up down (Hu et al. 2021, eq. 3; arXiv 2106.09685).

On a convolution, ``down`` has the module's kernel, stride and padding and ``up`` is 1x1 (LoCon); with ``tucker`` the
kernel is in a core between them, ``mid``, and ``down`` is 1x1, too. With ``rslora`` the scale is alpha / sqrt(rank)
(Kalajdzievski 2023, eq. 4; arXiv 2312.03732), which the file keeps as another alpha.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..registry import option
from . import NETWORKS, fused
from .base import Layer
from .form import Form
from .initial import (
    GAUSSIAN,
    INITS,
    KAIMING,
    OF_THE_WEIGHT,
    ORTHOGONAL,
    gaussian,
    of_the_weight,
    orthogonal,
    uniform,
)
from .pair import Kept, Pair, nearest
from .settings import Ranked
from .weight import matrix


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

    init: str = option(
        KAIMING,
        "Where it begins. kaiming, gaussian and orthogonal change nothing at first. pissa and olora begin with the "
        "weight's own main directions, which learns faster; preparing takes a while, and the file has twice the rank.",
        choices=INITS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tucker and self.init != KAIMING:
            raise ValueError(f"tucker goes with init={KAIMING} only, and init is {self.init}.")

    def build(self, module: nn.Module, generator: torch.Generator) -> Layer:
        """A ``LoraLayer`` for a linear or convolution module."""
        form = Form.of(module, "a LoRA")
        rank, alpha = self.of(form)
        alpha *= math.sqrt(rank) if self.rslora else 1.0
        layer: LoraLayer
        if self.init in OF_THE_WEIGHT:
            weight = matrix(module, f"init={self.init}")
            layer = ResidualLayer(form, rank, alpha, generator, self.init, weight)
        else:
            kind = TuckerLayer if self.tucker and form.area > 1 else LoraLayer
            layer = kind(form, rank, alpha, generator)
        if self.init == GAUSSIAN:
            layer.start(gaussian((rank, form.columns), generator))
        elif self.init == ORTHOGONAL:
            layer.start(*orthogonal(form.rows, rank, form.columns, generator))
        layer.dropout, layer.rank_dropout = self.dropout, self.rank_dropout
        layer.module_dropout = self.module_dropout
        return layer


class LoraLayer(Layer):
    """``down`` is ``[rank, in, *kernel]``, ``up`` is ``[out, rank, *1]``, ``alpha`` a number."""

    files = {"lora_up.weight": "up", "lora_down.weight": "down"}
    dropout = rank_dropout = 0.0
    is_fusible = True  # up down x is the whole path

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

    def direct(self, module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor | None] | None:
        """The module and the low-rank path together, where nothing is dropped out."""
        compute = fused.direct(module, self.form, self.fetch) if self.is_fusible else None
        if compute is None:
            return None
        drops = self.dropout or self.rank_dropout or self.module_dropout

        def adapted(x: torch.Tensor) -> torch.Tensor | None:
            if drops and self.training and self.masks.is_on:
                return None
            return compute(x, self.down, self.up, self.scale)

        return adapted

    def change(self, x: torch.Tensor) -> torch.Tensor:
        """The low-rank path of ``x``."""
        inner = self.dropped(self.inner(x))
        return self.form.point(inner * self.scale, self.up.to(x.dtype))

    def start(self, down: torch.Tensor, up: torch.Tensor | None = None) -> None:
        """Begin with these factors, ``[n, in * kernel]`` and ``[out, n]``; ranks beyond n stay as they are."""
        with torch.no_grad():
            self.down.flatten(1)[: len(down)] = down
            if up is not None:
                self.up.flatten(1)[:, : len(down)] = up

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
    is_fusible = False

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


class ResidualLayer(LoraLayer):
    """A LoRA that begins with a part of the weight; what it began with, ``down0`` and ``up0``, is taken off again.

    Files have both as one LoRA of twice the rank: up down - up0 down0 = [up, -up0] [down; down0].
    """

    is_fusible = False
    down0: torch.Tensor
    up0: torch.Tensor

    def __init__(
        self,
        form: Form,
        rank: int,
        alpha: float,
        generator: torch.Generator,
        init: str,
        weight: torch.Tensor,
    ) -> None:
        super().__init__(form, rank, alpha, generator)
        down, up = of_the_weight(init, weight, rank, self.scale)
        self.start(down.cpu(), up.cpu())
        self.register_buffer("down0", self.down.detach().clone(), persistent=False)
        self.register_buffer("up0", self.up.detach().clone(), persistent=False)

    def change(self, x: torch.Tensor) -> torch.Tensor:
        """The low-rank path of ``x`` less that of the start; both in the same way, so that they cancel to the bit."""
        inner = self.form.apply(x, self.down0.to(x.dtype))
        return super().change(x) - self.form.point(inner * self.scale, self.up0.to(x.dtype))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Those of a LoRA of twice the rank and twice the alpha."""
        return {
            "lora_up.weight": torch.cat([self.up, -self.up0], 1),
            "lora_down.weight": torch.cat([self.down, self.down0]),
            "alpha": torch.tensor(2 * self.alpha),
        }

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what ``tensors()`` gave, and what it began with."""
        expected = {key: tensor.shape for key, tensor in self.tensors().items()}
        for key, shape in expected.items():
            if key not in tensors or tensors[key].shape != shape:
                came = f"shape {list(tensors[key].shape)}" if key in tensors else "nothing"
                raise ValueError(f"{key}: expected shape {list(shape)}, got {came}.")
        up, up0 = tensors["lora_up.weight"].chunk(2, 1)
        down, down0 = tensors["lora_down.weight"].chunk(2)
        with torch.no_grad():
            for own, other in (
                (self.up, up),
                (self.up0, -up0),
                (self.down, down),
                (self.down0, down0),
            ):
                own.copy_(other)
        check_alpha(tensors, 2 * self.alpha)

    def take_alpha(self, alpha: float) -> None:
        """Use the alpha of a file, which is twice the layer's."""
        super().take_alpha(alpha / 2)

    def change_norm(self) -> float | None:
        """As of a LoRA of twice the rank."""
        up, down = (
            self.tensors()[f"lora_{side}.weight"].detach().to("cpu", torch.float64).flatten(1)
            for side in ("up", "down")
        )
        square = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0.0)
        return abs(self.scale) * float(square.sqrt())

    def begin(self, pair: Pair) -> Kept | None:
        """It begins with the weight.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "With init=pissa or olora a LoRA begins with the weight, not with another LoRA: set init=kaiming."
        )


def check_alpha(tensors: dict[str, torch.Tensor], alpha: float) -> None:
    """Whether a state's alpha is the settings'.

    Raises:
        ValueError: It is another one.
    """
    if "alpha" in tensors and float(tensors["alpha"]) != torch.tensor(alpha).item():
        raise ValueError(
            f"alpha is {float(tensors['alpha'])} in the state and {alpha} in the settings."
        )
