# SPDX-License-Identifier: Apache-2.0
"""LoHa: dW = (alpha / rank) (w1_a w1_b) o (w2_a w2_b), o being entry by entry (FedPara, arXiv 2108.06098, Prop. 1).

Entry by entry, a product of rank r with one of rank r is a product of rank r^2: the rows of its factors are all
products of the rows of the two. So it is computed as a LoRA of rank r^2 where that is less work than dW itself; else dW
is made in the forward pass, and its two halves again in the backward pass.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import NETWORKS
from .base import Layer
from .form import Form
from .lora import check_alpha
from .settings import Ranked


@NETWORKS.register("loha")
@dataclass(frozen=True, repr=False)
class LoHa(Ranked):
    """Settings of a LoHa network."""

    def build(self, module: nn.Module, generator: torch.Generator) -> Layer:
        """A ``LohaLayer`` for a linear or convolution module."""
        form = Form.of(module, "a LoHa")
        layer = LohaLayer(form, *self.of(form), generator)
        layer.module_dropout = self.module_dropout
        return layer


class LohaLayer(Layer):
    """``w1_a`` and ``w2_a`` are ``[out, rank]``, ``w1_b`` and ``w2_b`` ``[rank, in * kernel]``.

    They are drawn as LyCORIS draws them: a from N(0, 0.1), b from N(0, 1), and ``w2_a`` is 0.
    """

    files = {
        "hada_w1_a": "w1_a",
        "hada_w1_b": "w1_b",
        "hada_w2_a": "w2_a",
        "hada_w2_b": "w2_b",
    }

    def __init__(self, form: Form, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.form, self.alpha, self.scale = form, alpha, alpha / rank
        rows, columns = (form.rows, rank), (rank, form.columns)
        self.w1_a = nn.Parameter(0.1 * torch.randn(rows, generator=generator))
        self.w1_b = nn.Parameter(torch.randn(columns, generator=generator))
        self.w2_a = nn.Parameter(torch.zeros(rows))
        self.w2_b = nn.Parameter(torch.randn(columns, generator=generator))
        self.is_factored = rank**2 * (form.rows + form.columns) <= form.rows * form.columns

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """``y`` plus dW ``x``, in the dtype of ``x``."""
        form, kernel = self.form, (self.form.inputs, *self.form.kernel)
        if self.is_factored:
            up = (self.w1_a[:, :, None] * self.w2_a[:, None, :]).flatten(1)
            down = (self.w1_b[:, None, :] * self.w2_b[None, :, :]).flatten(0, 1)
            inner = form.apply(x, down.to(x.dtype).reshape(-1, *kernel))
            return y + self.whole(form.point(inner * self.scale, up.to(x.dtype)))
        change = _Product.apply(self.w1_a, self.w1_b, self.w2_a, self.w2_b)
        weight = (change * self.scale).to(x.dtype).reshape(form.rows, *kernel)
        return y + self.whole(form.apply(x, weight))

    def tensors(self) -> dict[str, torch.Tensor]:
        """``hada_w1_a`` to ``hada_w2_b`` and ``alpha``, the names of LyCORIS, PEFT and ComfyUI."""
        return super().tensors() | {"alpha": torch.tensor(self.alpha)}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over the four factors; alpha must be the same."""
        super().load(tensors)
        check_alpha(tensors, self.alpha)

    def change_norm(self) -> float | None:
        """|dW|, of dW itself."""
        with torch.no_grad():
            change = (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)
            return abs(self.scale) * float(torch.linalg.vector_norm(change))


class _Product(torch.autograd.Function):
    """(a1 b1) o (a2 b2), of which only the factors are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, a1: Any, b1: Any, a2: Any, b2: Any) -> Any:
        ctx.save_for_backward(a1, b1, a2, b2)
        return (a1 @ b1).mul_(a2 @ b2)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        a1, b1, a2, b2 = ctx.saved_tensors
        one = gradients[0] * (a2 @ b2)
        by_first = one @ b1.T, a1.T @ one
        two = gradients[0] * (a1 @ b1)
        return *by_first, two @ b2.T, a2.T @ two
