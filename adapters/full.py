# SPDX-License-Identifier: Apache-2.0
"""Full weights: what is trained is the change dW of each weight, bias and scale of a normalization, in fp32 from zeros.

So weight decay pulls towards the model as it was, the model's own numbers stay in the precision that it came in, and a
file is ComfyUI's ``diff`` and ``diff_b``. A layer computes once, with W0 + dW in the precision of its input; the sum
is made again in the backward pass instead of being kept, as it would double the memory of the weights.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from ..registry import check_limits, option
from . import NETWORKS
from .base import Layer
from .pair import Kept, Pair
from .settings import Settings
from .targets import is_table, kind, norm, targets
from .weight import needed

Base = Callable[[torch.Tensor], torch.Tensor]
_WHAT = "training the weight itself"


@NETWORKS.register("full")
@dataclass(frozen=True, repr=False)
class Full(Settings):
    """Settings of a network that trains the weights themselves."""

    blocks: str = option("all", "Which layers are trained: presets and patterns.")
    norms: bool = option(True, "Train the scales and shifts of normalizations, too.")
    biases: bool = option(True, "Train biases, too.")
    detach_first: bool = option(
        False,
        "The first token's output of each linear layer teaches nothing: for keys and values of the text, as in Custom "
        "Diffusion.",
    )
    module_dropout: float = option(
        0.0, "Share of the pictures for which a layer is left out.", min=0.0, max=0.99
    )

    def __post_init__(self) -> None:
        check_limits(self)

    def targets(self, root: nn.Module) -> tuple[str, ...]:
        """Names of the linear, convolution and normalization modules that ``blocks`` selects, and of class embeddings.

        Raises:
            ValueError: It selects none.
        """
        return targets(root, self.blocks, self.norms, tables=True)

    def build(self, module: nn.Module, generator: torch.Generator) -> Layer:
        """A ``FullLayer`` for a linear, convolution or normalization module."""
        layer = FullLayer(module, self.biases)
        layer.detach_first = self.detach_first and kind(module) == "linear"
        layer.module_dropout = self.module_dropout
        return layer


class FullLayer(Layer):
    """``weight`` and ``bias``, where there is one, are the changes of the module's, of their shapes."""

    detach_first = False
    bias: nn.Parameter | None

    def __init__(self, module: nn.Module, biases: bool) -> None:
        super().__init__()
        self._module = (module,)  # in a tuple: its weights are not this layer's
        scale = None if kind(module) else norm(module)
        own = scale or "weight"
        base = module._parameters.get("scale") if scale == "scale" else needed(module, _WHAT)
        if base is None or own not in module._parameters:
            raise ValueError(
                f"Its weight is no parameter that {_WHAT} could add to; leave it out of blocks."
            )
        shift = module._parameters.get("bias") if biases else None
        self.own = {"weight": own}
        self.weight = nn.Parameter(torch.zeros(base.shape))
        self.bias = None
        self.files = {"diff" if own == "weight" else f"{own}.diff": "weight"}
        if shift is not None:
            self.bias = nn.Parameter(torch.zeros(shift.shape))
            self.own["bias"] = "bias"
            self.files["diff_b"] = "bias"
        self.is_table = is_table(module)
        self.is_product = scale is None and not self.is_table and _has_plain_padding(module)

    def computed(self, x: torch.Tensor, base: Base) -> torch.Tensor:
        """What the module makes of ``x`` with W0 + dW."""
        if self.is_table:  # rows are looked up: those of the sum are the sum of theirs
            rows = base(x)
            return rows + F.embedding(x, self.weight).to(rows.dtype)
        if self.is_product and torch.is_grad_enabled():
            y: torch.Tensor = _Product.apply(x, self.weight, self.bias, self, base)
        else:
            with self.summed(x):
                y = base(x)
        if self.detach_first and y.ndim == 3:
            y = torch.cat([y[:, :1].detach(), y[:, 1:]], 1)
        if not (self.module_dropout and self.training and self.masks.is_on):
            return y
        kept = self.masks.kept(len(y), (), self.module_dropout, "module").to(y.device)
        return torch.where(kept.reshape(-1, *(1,) * (y.ndim - 1)) > 0, y, base(x))

    def sum_of(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """W0 + dW, or b0 + db, where ``x`` is and in its precision.

        Args:
            name: ``weight`` or ``bias``.
            x: The module's input.
        """
        module, change = self._module[0], getattr(self, name)
        base = module._parameters[self.own[name]]
        if base is None:
            raise RuntimeError(f"The {self.own[name]} that was trained is gone from the module.")
        total: torch.Tensor = base.detach().to(x.device, change.dtype) + change
        return total.to(x.dtype)

    @contextlib.contextmanager
    def summed(self, x: torch.Tensor) -> Iterator[None]:
        """The module has the sums instead of its own parameters inside the block."""
        own: dict[str, Any] = self._module[0]._parameters
        before = {name: own[name] for name in self.own.values()}
        try:
            own.update({of: self.sum_of(name, x) for name, of in self.own.items()})
            yield
        finally:
            own.update(before)

    def begin(self, pair: Pair) -> Kept | None:
        """Start with the change that a LoRA makes, as it is.

        Args:
            pair: The change.

        Returns:
            None: all of it is kept.

        Raises:
            ValueError: The layer is of another shape.
        """
        sides = [len(self.weight), self.weight[0].numel()]
        came = [pair.up.shape[0], pair.down.shape[1]]
        if came != sides:
            raise ValueError(f"expected a change of shape {sides}, got {came}.")
        with torch.no_grad():
            change = pair.scale * (pair.up.double() @ pair.down.double())
            self.weight.copy_(change.reshape(self.weight.shape))
        return None

    def change_norm(self) -> float | None:
        """|dW|, without the bias."""
        return float(torch.linalg.vector_norm(self.weight.detach()))


class _Product(torch.autograd.Function):
    """A linear layer or convolution that keeps its input alone for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        layer: FullLayer,
        base: Base,
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        with layer.summed(x):
            y = base(x)
        # A product with a bias is a view, and hosts add to what they get in place, which autograd forbids for views.
        if not y._is_view():
            return y
        place = (y.storage_offset(), y.shape, y.stride())
        return y.new_empty(0).set_(y.untyped_storage(), *place)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,), layer = ctx.saved_tensors, ctx.layer
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        weight = layer.sum_of("weight", x)
        module = layer._module[0]
        of_x = of_weight = of_bias = None
        if kind(module) == "linear":
            of_x = grad @ weight if to_x else None
            rows = grad.flatten(0, -2)
            of_weight = rows.mT @ x.flatten(0, -2) if to_weight else None
            of_bias = rows.sum(0) if to_bias else None
        else:
            how = (module.stride, module.padding, module.dilation, False, [0], module.groups)
            shape, wanted = [weight.shape[0]], [to_x, to_weight, to_bias]
            found = torch.ops.aten.convolution_backward(grad, x, weight, shape, *how, wanted)
            of_x, of_weight, of_bias = found
        changes = (of_weight, layer.weight), (of_bias, layer.bias)
        return of_x, *(g if g is None else g.to(p.dtype) for g, p in changes), None, None


def _has_plain_padding(module: Any) -> bool:
    """Whether the gradient of a layer is that of a plain product or convolution."""
    if kind(module) == "linear":
        return True
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)
