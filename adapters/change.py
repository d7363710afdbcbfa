# SPDX-License-Identifier: Apache-2.0
"""How much training has changed each block of a model: |dW| / |W|, Frobenius norms over its trained layers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from .base import Layer
from .weight import readable


@dataclass(frozen=True)
class Change:
    """What was found.

    Attributes:
        blocks: |dW| / |W| by the block's name, in the model's order.
        skipped: Layers that do not tell their norm, or whose weight cannot be read.
    """

    blocks: Mapping[str, float]
    skipped: tuple[str, ...] = ()

    def largest(self, count: int) -> list[tuple[str, float]]:
        """The blocks that changed most, the first one most."""
        return sorted(self.blocks.items(), key=lambda pair: -pair[1])[:count]


class Measure:
    """Measures one network on one model.

    Args:
        root: The model.
        layers: The attached layers by the module's name.
    """

    def __init__(self, root: nn.Module, layers: Mapping[str, Layer]) -> None:
        self._root, self._layers = root, layers
        self._weights: dict[str, float | None] = {}

    def __call__(self) -> Change:
        """The change as it is now; the frozen weights are read the first time only."""
        squares: dict[str, list[float]] = {}
        skipped = []
        for name, layer in self._layers.items():
            if name not in self._weights:
                self._weights[name] = _weight_norm(self._root.get_submodule(name))
            whole, part = self._weights[name], layer.change_norm()
            if whole is None or part is None:
                skipped.append(name)
                continue
            sums = squares.setdefault(block_of(name), [0.0, 0.0])
            sums[0] += part**2
            sums[1] += whole**2
        ratios = {block: math.sqrt(dw / w) if w else 0.0 for block, (dw, w) in squares.items()}
        return Change(ratios, tuple(skipped))


def block_of(name: str) -> str:
    """The block of a layer: ``input_blocks.4``, ``middle_block``, ``double_blocks.3``, ``out``."""
    first, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    is_numbered = first.endswith(("blocks", "layers")) and number.isdigit()
    return f"{first}.{number}" if is_numbered else first


def _weight_norm(module: nn.Module) -> float | None:
    """|W|; None for a weight that cannot be read."""
    weight = readable(module)
    if weight is None:
        return None
    with torch.no_grad():
        return float(torch.linalg.vector_norm(weight.float()))
