# SPDX-License-Identifier: Apache-2.0
"""LoKr: dW = scale kron(w1, w2) (Yeh et al. 2023, LyCORIS, sec. 3.3; arXiv 2309.14859).

w1 is small, w2 the rest of the shape: whole, or of low rank where that is less. As LyCORIS and ComfyUI have it, the
scale is 1 where both are whole, else alpha / rank. dW is never made: (w1 kron w2) x = w1 X w2^T with x as a matrix X.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ..registry import option
from . import NETWORKS
from .base import Layer
from .form import Form
from .initial import uniform
from .lora import check_alpha
from .settings import Ranked


@NETWORKS.register("lokr")
@dataclass(frozen=True, repr=False)
class LoKr(Ranked):
    """Settings of a LoKr network."""

    factor: int = option(
        -1,
        "The sides of w1 are at most this long: a small one makes a larger file that learns more. -1: as near to the "
        "root of the layer's sides as they divide.",
        min=-1,
        max=4096,
    )

    def build(self, module: nn.Module, generator: torch.Generator) -> Layer:
        """A ``LokrLayer`` for a linear or convolution module."""
        form = Form.of(module, "a LoKr")
        layer = LokrLayer(form, *self.of(form), self.factor, generator)
        layer.module_dropout = self.module_dropout
        return layer


class LokrLayer(Layer):
    """``w1`` is ``[out_1, in_1]``; ``w2`` ``[out_2, in_2, *kernel]``, or ``w2_a`` ``[out_2, rank]`` and ``w2_b``."""

    def __init__(
        self, form: Form, rank: int, alpha: float, factor: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.form, self.alpha = form, alpha
        (self.out_1, out_2), (self.in_1, in_2) = (
            split(form.rows, factor),
            split(form.inputs, factor),
        )
        self.inner = Form(out_2, in_2, form.kernel, form.how)
        self.is_low = 2 * rank < max(out_2, in_2)
        self.scale = alpha / rank if self.is_low else 1.0
        self.w1 = nn.Parameter(uniform((self.out_1, self.in_1), generator))
        if self.is_low:
            self.files = {"lokr_w1": "w1", "lokr_w2_a": "w2_a", "lokr_w2_b": "w2_b"}
            self.w2_a = nn.Parameter(uniform((out_2, rank), generator))
            self.w2_b = nn.Parameter(torch.zeros(rank, self.inner.columns))
        else:
            self.files = {"lokr_w1": "w1", "lokr_w2": "w2"}
            # The host takes a kernel of two sides as it is, and any other flattened.
            kernel = form.kernel if len(form.kernel) == 2 else (form.area,) if form.kernel else ()
            shape = (out_2, in_2, *kernel) if len(kernel) != 1 else (out_2, self.inner.columns)
            self.w2 = nn.Parameter(torch.zeros(shape))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """``y`` plus dW ``x``, in the dtype of ``x``."""
        form, sizes = self.form, (self.in_1, self.inner.inputs)
        w1 = (self.w1 * self.scale).to(x.dtype)
        if not form.kernel:
            low = self._second(x.unflatten(-1, sizes))  # [..., in_1, out_2]
            change = F.linear(low.transpose(-1, -2), w1)  # [..., out_2, out_1]
            return y + self.whole(change.transpose(-1, -2).flatten(-2))
        low = self._second(x.unflatten(form.axis, sizes).flatten(0, 1))
        low = low.unflatten(0, (-1, self.in_1)).movedim(1, -1)  # [B, out_2, *size, in_1]
        change = F.linear(low, w1).movedim(-1, 1)
        return y + self.whole(change.flatten(1, 2))

    def _second(self, x: torch.Tensor) -> torch.Tensor:
        """w2 of ``x``."""
        shape = (self.inner.inputs, *self.inner.kernel)
        if not self.is_low:
            return self.inner.apply(x, self.w2.to(x.dtype).reshape(-1, *shape))
        low = self.inner.apply(x, self.w2_b.to(x.dtype).reshape(-1, *shape))
        return self.inner.point(low, self.w2_a.to(x.dtype))

    def tensors(self) -> dict[str, torch.Tensor]:
        """``lokr_w1``, ``lokr_w2`` or its factors, and ``alpha``, the names of LyCORIS, PEFT and ComfyUI."""
        return super().tensors() | {"alpha": torch.tensor(self.alpha)}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over the factors; alpha must be the same."""
        super().load(tensors)
        check_alpha(tensors, self.alpha)

    def change_norm(self) -> float | None:
        """``|w1 kron w2| = |w1| |w2|``."""
        w1 = self.w1.detach().double().cpu().norm()
        if not self.is_low:
            return abs(self.scale) * float(w1 * self.w2.detach().double().cpu().norm())
        a, b = (w.detach().double().cpu() for w in (self.w2_a, self.w2_b))
        square = ((a.T @ a) * (b @ b.T)).sum().clamp(min=0.0)
        return abs(self.scale) * float(w1 * square.sqrt())


def split(size: int, factor: int) -> tuple[int, int]:
    """``size`` as a product of two numbers, the first at most ``factor`` and the second, and as large as can be.

    Args:
        size: A side of a weight.
        factor: -1 sets no limit but the root.
    """
    limit = min(math.isqrt(size), factor if factor > 0 else size)
    first = next(n for n in range(limit, 0, -1) if size % n == 0)
    return first, size // first
