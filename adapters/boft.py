# SPDX-License-Identifier: Apache-2.0
"""BOFT: W = B_m ... B_1 W0, each B block-diagonal and orthogonal between two shuffles (Liu et al. 2023, eq. 3;
arXiv 2311.06243).

Blocks are turned by Cayley's form as in OFT; factor i pairs rows that are 2^i half blocks apart, so that all rows meet
after 1 + log2(count) factors. The shuffles are those of LyCORIS and ComfyUI, which has R there where OFT has R^T.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ..registry import option
from . import NETWORKS
from .base import Layer
from .form import Form
from .oft import OFT, OftLayer


@NETWORKS.register("boft")
@dataclass(frozen=True, repr=False)
class BOFT(OFT):
    """Settings of a BOFT network."""

    rank: int = option(
        8,
        "Rows that are turned together: the largest even number up to this, or else the smallest, that divides a "
        "layer's outputs into a power of two.",
        min=2,
        max=4096,
    )
    factors: int = option(
        0, "How often they are shuffled and turned; 0: until every row meets every other.", min=0
    )

    def build(self, module: nn.Module, generator: torch.Generator) -> Layer:
        """A ``BoftLayer`` for a linear or convolution module."""
        form = Form.of(module, "a BOFT")
        powers = [2**i for i in range(form.rows.bit_length()) if form.rows % 2 ** (i + 1) == 0]
        sizes = [form.rows // count for count in powers]
        if not sizes:
            raise ValueError(
                f"Its {form.rows} outputs are an odd number, which has no pairs to turn: leave it out of blocks."
            )
        size = max((n for n in sizes if n <= self.rank), default=min(sizes))
        count = form.rows // size
        most = count.bit_length()  # 1 + log2(count)
        shape = (min(self.factors or most, most), count, size, size)
        layer = BoftLayer(module, form, shape, self.constraint)
        layer.module_dropout = self.module_dropout
        return layer


class BoftLayer(OftLayer):
    """``blocks`` is ``[factors, count, size, size]``, ``alpha`` the constraint."""

    def change(self, values: torch.Tensor) -> torch.Tensor:
        """``B_m ... B_1 - I`` of ``values`` ``[..., out]``."""
        return change(self.turn().to(values.dtype), values)


def change(turns: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``B_m ... B_1 - I`` of values.

    Args:
        turns: ``R - I`` of every block, ``[factors, count, size, size]``.
        values: ``[..., out]``.

    Returns:
        ``[..., out]``.
    """
    half, turned = turns.shape[-1] // 2, values
    for i, turn in enumerate(turns):
        apart = 2**i * half
        mixed = turned.unflatten(-1, (-1, 2, apart)).mT.flatten(-3)
        parts = mixed.unflatten(-1, turn.shape[:2])
        mixed = torch.einsum("kij,...kj->...ki", turn, parts).flatten(-2)
        turned = turned + mixed.unflatten(-1, (-1, apart, 2)).mT.flatten(-3)
    return turned - values
