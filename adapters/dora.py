# SPDX-License-Identifier: Apache-2.0
"""DoRA: W = m V / |V|, V = W0 + (alpha / rank) up down, |V| of every output's row (Liu et al. 2024, eq. 5;
arXiv 2402.09353).

m begins as |W0|, and |V| counts as a number in the gradient (eq. 11), as in PEFT. Nothing of the weight's size is made
or kept: with c = m / |V| the output is c times what module and LoRA put out, and |V|^2 = |W0|^2 + 2 s up (W0 down^T) +
s^2 up (down down^T) up^T row by row. What files keep is in ``export``.
"""

from dataclasses import dataclass

import torch
from torch import nn

from . import NETWORKS
from .base import Layer
from .form import Form
from .initial import GAUSSIAN, KAIMING
from .lora import LoRA, LoraLayer
from .pair import Kept, Pair
from .weight import bias, matrix


@NETWORKS.register("dora")
@dataclass(frozen=True, repr=False)
class DoRA(LoRA):
    """Settings of a DoRA network: those of a LoRA."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tucker:
            raise ValueError("A DoRA has no core: set tucker=no, or choose the network 'lora'.")
        if self.init not in (KAIMING, GAUSSIAN):
            raise ValueError(
                f"A DoRA begins with init={KAIMING} or {GAUSSIAN}, not {self.init}; choose the network 'lora' for it."
            )

    def build(self, module: nn.Module, generator: torch.Generator) -> Layer:
        """A ``DoraLayer`` for a linear or convolution module."""
        lora = super().build(module, generator)
        if not isinstance(lora, LoraLayer):
            raise TypeError("A LoRA's layer was expected.")
        layer = DoraLayer(module, lora.form, len(lora.down), lora.alpha, generator)
        with torch.no_grad():
            layer.down.copy_(lora.down)  # as a LoRA of this seed begins
        for name in ("dropout", "rank_dropout", "module_dropout"):
            setattr(layer, name, getattr(self, name))
        return layer


class DoraLayer(LoraLayer):
    """A LoRA's tensors and ``magnitude`` ``[out]``."""

    files = {**LoraLayer.files, "lora_magnitude_vector": "magnitude"}
    has_exact_gradient = False  # |V| counts as a number
    is_fusible = False
    bias: torch.Tensor | None
    squares: torch.Tensor

    def __init__(
        self,
        module: nn.Module,
        form: Form,
        rank: int,
        alpha: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(form, rank, alpha, generator)
        self._module = (module,)  # in a tuple: its weights are not this layer's
        squares = matrix(module, "a DoRA").square().sum(1)
        self.register_buffer("squares", squares.clone(), persistent=False)
        self.register_buffer("bias", bias(module), persistent=False)
        self.magnitude = nn.Parameter(squares.sqrt())

    def norms(self) -> torch.Tensor:
        """|V| of every row, ``[out]`` fp32, without a gradient."""
        with torch.no_grad():
            up, down = self.up.flatten(1), self.down.flatten(1)
            weight = matrix(self._module[0], "a DoRA").to(down.device)
            cross = (up * (weight @ down.T)).sum(1)
            own = (up @ (down @ down.T) * up).sum(1)
            squares: torch.Tensor = self.squares + 2 * self.scale * cross + self.scale**2 * own
            return squares.clamp(min=0.0).sqrt()

    def ratio(self) -> torch.Tensor:
        """m / |V|, ``[out]``; 1 where a row of the weight is 0 and stays so."""
        norms = self.norms()
        return torch.where(norms > 0, self.magnitude / norms.clamp(min=1e-12), 1.0)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """``y`` plus (c - 1) of it without the bias, plus c of the LoRA, in the dtype of ``x``."""
        ratio, bare = self.form.channels(self.ratio()), y
        if self.bias is not None:
            bare = y - self.form.channels(self.bias.to(y.dtype))
        change = (ratio - 1).to(y.dtype) * bare + ratio.to(y.dtype) * self.change(x)
        return y + self.whole(change)

    def begin(self, pair: Pair) -> Kept | None:
        """Start with a change: the magnitude is that of the weight with it, so that W is V.

        Args:
            pair: The change.

        Returns:
            How much of it was kept, None where it was taken over as it is.
        """
        kept = super().begin(pair)
        with torch.no_grad():
            self.magnitude.copy_(self.norms())
        return kept

    def change_norm(self) -> float | None:
        """|W - W0|, of the weight itself."""
        with torch.no_grad():
            weight = matrix(self._module[0], "a DoRA").to(self.down.device)
            whole = weight + self.scale * self.up.flatten(1) @ self.down.flatten(1)
            return float(torch.linalg.vector_norm(self.ratio()[:, None] * whole - weight))
