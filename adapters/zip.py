# SPDX-License-Identifier: Apache-2.0
"""ZipLoRA (Shah et al. 2023; arXiv 2311.13600): two frozen changes of a layer, each column with a learned factor.

    dW = D1 diag(m1) + D2 diag(m2),   m = 1 at first

A factor of a column keeps the rank: D diag(m) = B (A diag(m)), so that the result is exactly a LoRA whose rank is the
sum of the two: dW = [B1 B2] [A1 diag(m1); A2 diag(m2)].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from .base import Layer
from .form import Form
from .pair import Pair

BOTH, FIRST, SECOND, NEITHER = "both", "first", "second", "neither"
REPO, PAPER = "repo", "paper"
SIMILARITIES = (REPO, PAPER)


@dataclass
class Turn:
    """Which of the two counts now, for all layers."""

    which: str = BOTH


@dataclass(frozen=True, eq=False)
class Zip:
    """A ``Network`` of layers that hold two changes.

    Attributes:
        pairs: The two changes of each layer, None where one of them has it not.
        turn: Which of the two counts.
        blocks: For the protocol; the layers are those of ``pairs``.
    """

    pairs: Mapping[str, tuple[Pair | None, Pair | None]]
    turn: Turn = field(default_factory=Turn)
    blocks: str = "all"

    @property
    def shared(self) -> int:
        """How many layers both have."""
        return sum(None not in two for two in self.pairs.values())

    def targets(self, root: nn.Module) -> tuple[str, ...]:
        """The layers of the pairs."""
        return tuple(self.pairs)

    def plan(self, names: Sequence[str]) -> Mapping[str, "Zip"]:
        """What belongs to each layer."""
        return {name: replace(self, pairs={name: self.pairs[name]}) for name in names}

    def build(self, module: nn.Module, generator: torch.Generator) -> Layer:
        """A ``ZipLayer`` for the module."""
        ((first, second),) = self.pairs.values()
        return ZipLayer(Form.of(module, "ZipLoRA"), first, second, self.turn)


class ZipLayer(Layer):
    """Two pairs and their factors ``[in * kernel]``; a layer that only one has keeps it as it is and learns nothing."""

    def __init__(self, form: Form, first: Pair | None, second: Pair | None, turn: Turn) -> None:
        super().__init__()
        self.form, self.turn = form, turn
        self.is_shared = first is not None and second is not None
        for name, pair in (("1", first), ("2", second)):
            if pair is None:
                continue
            if (len(pair.up), pair.down.shape[1]) != (form.rows, form.columns):
                raise ValueError(
                    f"expected a change of shape {[form.rows, form.columns]}, got {[len(pair.up), pair.down.shape[1]]}."
                )
            self.register_buffer(f"up_{name}", pair.up.float().clone())
            self.register_buffer(f"down_{name}", (pair.down * pair.scale).float())
            if self.is_shared:
                self.register_parameter(f"m_{name}", nn.Parameter(torch.ones(form.columns)))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """``y`` and what the changes that count now make of ``x``."""
        which, kernel = self.turn.which, (self.form.inputs, *self.form.kernel)
        for name, alone in (("1", FIRST), ("2", SECOND)):
            if not hasattr(self, f"up_{name}") or which not in (BOTH, alone):
                continue
            down = getattr(self, f"down_{name}")
            if which == BOTH and self.is_shared:
                down = down * getattr(self, f"m_{name}")
            inner = self.form.apply(x, down.reshape(-1, *kernel).to(x.dtype))
            y = y + self.form.point(inner, getattr(self, f"up_{name}").to(x.dtype))
        return y

    def similarity(self, kind: str) -> torch.Tensor:
        """How much the factors overlap: ``repo`` mean |m1 m2| over columns, ``paper`` |m1 . m2|; 0 for one alone."""
        if not self.is_shared:
            return torch.zeros(())
        product: torch.Tensor = self.m_1 * self.m_2  # type: ignore[operator, assignment]
        return product.abs().mean() if kind == REPO else product.sum().abs()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The LoRA that this layer is, of rank r1 + r2 and an alpha of that."""
        ups, downs = [], []
        for name in "12":
            if hasattr(self, f"up_{name}"):
                factor = getattr(self, f"m_{name}") if self.is_shared else 1.0
                ups.append(getattr(self, f"up_{name}"))
                downs.append(getattr(self, f"down_{name}") * factor)
        down, up = torch.cat(downs), torch.cat(ups, dim=1)
        return {
            "lora_up.weight": up.reshape(self.form.rows, -1, *self.form.ones),
            "lora_down.weight": down.reshape(-1, self.form.inputs, *self.form.kernel),
            "alpha": torch.tensor(float(len(down))),
        }
