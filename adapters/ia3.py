# SPDX-License-Identifier: Apache-2.0
"""(IA)^3: each output, or each input, of a layer times a learned number (Liu et al. 2022, sec. 3.3; arXiv 2205.05638).

Kept is what the numbers differ from 1 by, so that weight decay pulls towards the model as it was. The bias is a part of
the outputs, as in PEFT. What files keep is in ``export``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..registry import check_limits, option
from . import NETWORKS
from .base import Layer
from .form import Form
from .settings import Settings
from .targets import matching
from .weight import readable


@NETWORKS.register("ia3")
@dataclass(frozen=True, repr=False)
class IA3(Settings):
    """Settings of an (IA)^3 network."""

    blocks: str = option("attention", "Which layers are trained: presets and patterns.")
    module_dropout: float = option(
        0.0, "Share of the pictures for which a layer is left out.", min=0.0, max=0.99
    )
    on_input: str = option(
        "",
        "Patterns of layers whose inputs are scaled instead of their outputs, with semicolons between them: ff.net.2, "
        "as the paper has it.",
    )

    def __post_init__(self) -> None:
        check_limits(self)

    def plan(self, names: Sequence[str]) -> Mapping[str, "IA3"]:
        """The settings of every layer by its name: ``on_input`` is ``*`` or empty.

        Raises:
            ValueError: A pattern matches none of them; lists near names.
        """
        patterns = filter(None, map(str.strip, self.on_input.replace(",", ";").split(";")))
        scaled = set().union(*(matching(names, pattern, "on_input") for pattern in patterns))
        outputs, inputs = replace(self, on_input=""), replace(self, on_input="*")
        return {name: inputs if name in scaled else outputs for name in names}

    def build(self, module: nn.Module, generator: torch.Generator) -> Layer:
        """An ``Ia3Layer`` for a linear or convolution module."""
        layer = Ia3Layer(module, Form.of(module, "an (IA)^3"), bool(self.on_input))
        layer.module_dropout = self.module_dropout
        return layer


class Ia3Layer(Layer):
    """``change`` is ``[out]``, or ``[in]`` where inputs are scaled."""

    def __init__(self, module: nn.Module, form: Form, on_input: bool) -> None:
        super().__init__()
        self.form, self.on_input, self._module = form, on_input, (module,)
        self.files = {"ia3_input" if on_input else "ia3_output": "change"}
        self.change = nn.Parameter(torch.zeros(form.inputs if on_input else form.rows))

    def before(self, x: torch.Tensor) -> torch.Tensor:
        """The scaled input, where inputs are scaled."""
        return x + self.whole(x * self._factors(x)) if self.on_input else x

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The scaled output, where outputs are scaled."""
        return y if self.on_input else y + self.whole(y * self._factors(y))

    def _factors(self, values: torch.Tensor) -> torch.Tensor:
        return self.form.channels(self.change.to(values.dtype))

    def change_norm(self) -> float | None:
        """|dW|, of sums of squares of the weight's rows or columns; None where it cannot be read."""
        weight = readable(self._module[0])
        if weight is None:
            return None
        sides = [d for d in range(weight.ndim) if d != int(self.on_input)]
        squares = weight.float().square().sum(sides).double().cpu()
        factors = self.change.detach().double().cpu()
        return float((squares * factors.square()).sum().sqrt())
