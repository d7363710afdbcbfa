# SPDX-License-Identifier: Apache-2.0
"""OFT: W = R^T W0, R block-diagonal and orthogonal (Qiu et al. 2023, eq. 5 and 6; arXiv 2306.07280).

R = (I + Q) (I - Q)^-1 with Q = B - B^T (Cayley), one block for every ``size`` rows, as kohya, LyCORIS and ComfyUI have
it. As R turns outputs, it is applied to what the module puts out, without its bias, and no weight is made.
ComfyUI's loader is exact at strength 1; at strength s it has s^2 (R^T - I) W0. Load Adapter turns by s times the angle.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ..registry import check_limits, option
from . import NETWORKS
from .base import Layer
from .form import Form
from .lora import check_alpha
from .rotation import cayley, skew
from .settings import Settings
from .weight import bias, readable


@NETWORKS.register("oft")
@dataclass(frozen=True, repr=False)
class OFT(Settings):
    """Settings of an OFT network."""

    rank: int = option(
        16,
        "Rows that are turned together: the largest divisor of a layer's outputs up to this.",
        min=2,
        max=4096,
    )
    blocks: str = option("attention", "Which layers are trained: presets and patterns.")
    module_dropout: float = option(
        0.0, "Share of the pictures for which a layer is left out.", min=0.0, max=0.99
    )
    constraint: float = option(
        0.0,
        "|Q| of a layer stays at most this, so that nothing turns far; 0 sets no limit.",
        min=0.0,
    )

    def __post_init__(self) -> None:
        check_limits(self)

    def build(self, module: nn.Module, generator: torch.Generator) -> Layer:
        """An ``OftLayer`` for a linear or convolution module."""
        form = Form.of(module, "an OFT")
        size = max(n for n in range(1, min(self.rank, form.rows) + 1) if form.rows % n == 0)
        if size == 1:
            raise ValueError(
                f"Its {form.rows} outputs have no divisor from 2 to {self.rank}, so that nothing can be turned: raise "
                "rank, or leave it out of blocks."
            )
        layer = OftLayer(module, form, (form.rows // size, size, size), self.constraint)
        layer.module_dropout = self.module_dropout
        return layer


class OftLayer(Layer):
    """``blocks`` is ``[count, size, size]``, ``alpha`` the constraint."""

    files = {"oft_blocks": "blocks"}
    bias: torch.Tensor | None

    def __init__(
        self, module: nn.Module, form: Form, shape: tuple[int, ...], constraint: float
    ) -> None:
        super().__init__()
        self.form, self.constraint, self._module = form, constraint, (module,)
        self.blocks = nn.Parameter(torch.zeros(shape))
        self.register_buffer("bias", bias(module), persistent=False)

    def turn(self) -> torch.Tensor:
        """``R - I = 2 Q (I - Q)^-1`` of every block, fp32: no difference of near numbers."""
        return cayley(skew(self.blocks, self.constraint))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """``y`` plus what turning it without the bias changes, in the dtype of ``y``."""
        bare, axis = y, self.form.axis
        if self.bias is not None:
            bare = y - self.form.channels(self.bias.to(y.dtype))
        change = self.change(bare.movedim(axis, -1)).movedim(-1, axis)
        return y + self.whole(change)

    def change(self, values: torch.Tensor) -> torch.Tensor:
        """``(R^T - I)`` of ``values`` ``[..., out]``."""
        return change(self.turn().to(values.dtype), values)

    def tensors(self) -> dict[str, torch.Tensor]:
        """``oft_blocks`` and ``alpha``, the names of LyCORIS and ComfyUI."""
        return super().tensors() | {"alpha": torch.tensor(self.constraint)}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over the blocks; the constraint must be the same."""
        super().load(tensors)
        check_alpha(tensors, self.constraint)

    def change_norm(self) -> float | None:
        """|W - W0|, of the weight's columns; None where it cannot be read."""
        weight = readable(self._module[0])
        if weight is None:
            return None
        with torch.no_grad():
            columns = weight.to(self.blocks).flatten(1).T
            return float(torch.linalg.vector_norm(self.change(columns)))


def change(turns: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``(R^T - I)`` of values.

    Args:
        turns: ``R - I`` of every block, ``[count, size, size]``.
        values: ``[..., out]``.

    Returns:
        ``[..., out]``.
    """
    parts = values.unflatten(-1, turns.shape[:2])
    return torch.einsum("knm,...kn->...km", turns, parts).flatten(-2)
