# SPDX-License-Identifier: Apache-2.0
"""A layer and its LoRA as one function of autograd: y = W x + b + s up down x, without needless memory or time.

The low-rank path is added into y, and into the gradient of x, in place; only x and the small inner values are kept. Of
the products with a small side, each is taken in the order in which the small side comes first: on a CPU the other one
takes two to nine times as long.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .form import Form

Direct = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor | None]
Weights = tuple[torch.Tensor, torch.Tensor | None]
Fetch = Callable[[nn.Module, torch.Tensor], Weights | None]
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # that layers compute in
_CLOSE = 1e-2  # of bf16


def own(module: nn.Module, x: torch.Tensor) -> Weights | None:
    """A layer's weight and bias; None where it computes with others on its input ``x``."""
    given: Any = module
    weight = given.weight
    if weight.dtype != x.dtype or weight.device != x.device or weight.is_inference():
        return None
    if getattr(module, "weight_function", None) or getattr(module, "bias_function", None):
        return None
    return weight, given.bias


def direct(module: nn.Module, form: Form, fetch: Fetch = own) -> Direct | None:
    """How to compute a layer and its LoRA together, without the layer's own forward.

    Args:
        module: The layer, with its own forward.
        form: Its form.
        fetch: Gives weight and bias as the layer uses them on an input; None where it cannot.

    Returns:
        What takes ``x``, ``down``, ``up`` and the scale, and returns the adapted output, or None where nothing could be
        fetched. None in its place where the layer does more than its form says.
    """
    if not _is_plain(module, form, fetch):
        return None

    def compute(
        x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float
    ) -> torch.Tensor | None:
        source = _Source(module, fetch)
        weights = source.fetch(x)
        if weights is None:
            return None
        parts = (x, *weights, down.to(x.dtype), up.to(x.dtype), scale, source)
        made: torch.Tensor
        if form.kernel:
            made = _Convolved.apply(*parts, form.how)  # type: ignore[no-untyped-call]
        else:
            made = _Linear.apply(*parts)  # type: ignore[no-untyped-call]
        return made

    return compute


class _Source:
    """Where a weight comes from, and whether it has to be kept for the gradient of x."""

    def __init__(self, module: nn.Module, fetch: Fetch) -> None:
        self._module, self._fetch = module, fetch

    def fetch(self, x: torch.Tensor) -> Weights | None:
        """Weight and bias for an input."""
        return self._fetch(self._module, x)

    def kept(self, weight: torch.Tensor) -> torch.Tensor | None:
        """The weight, but for one that was only cast: that is done again, and the copy's memory is free meanwhile."""
        stored: Any = self._module.weight
        is_cast = weight.dtype != stored.dtype and weight.device == stored.device
        return None if is_cast else weight

    def again(self, weight: torch.Tensor | None, grad: torch.Tensor) -> torch.Tensor:
        """What was kept, or the same once more.

        Raises:
            RuntimeError: It cannot be had any more.
        """
        if weight is not None:
            return weight
        weights = self.fetch(grad)
        if weights is None:
            raise RuntimeError("The weight of a layer was taken away between forward and backward.")
        return weights[0]


def _is_plain(module: nn.Module, form: Form, fetch: Fetch) -> bool:
    """Whether a layer computes what its form, weight and bias say, and nothing else; found by asking it."""
    given: Any = module
    stored = given.weight
    if type(stored) not in (torch.Tensor, nn.Parameter) or stored.device.type == "meta":
        return False
    if stored.shape != (form.rows, form.inputs, *form.kernel) or stored.requires_grad:
        return False
    if any(isinstance(value, str) for value in form.how):
        return False
    dtype = stored.dtype if stored.dtype in _DTYPES else torch.float32
    with torch.inference_mode(stored.is_inference()), torch.no_grad():
        x = torch.linspace(-1, 1, form.inputs * math.prod(form.reach), device=stored.device)
        x = x.to(dtype).view(1, form.inputs, *form.reach)
        try:
            found = given.forward(x)
            weights = fetch(module, x)
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return False
        if weights is None:
            return False
        expected = form.apply(x, weights[0])
        if weights[1] is not None:
            expected = expected + form.channels(weights[1])
        return found.shape == expected.shape and torch.allclose(found, expected, _CLOSE, _CLOSE)


class _Linear(torch.autograd.Function):
    """``x`` is ``[..., in]``, ``down`` ``[rank, in]`` and ``up`` ``[out, rank]``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
        source: _Source,
    ) -> torch.Tensor:
        y = F.linear(x, weight, bias)  # with `up` at 0 the layer's own bits come out
        inner = _scaled(down @ x.reshape(-1, x.shape[-1]).t(), scale)
        y.view(-1, y.shape[-1]).addmm_(inner.t(), up.t())
        y = y.new_empty(0).set_(y)  # type: ignore[call-overload]  # no view, so that the network may write to it
        ctx.save_for_backward(x, inner, source.kept(weight), down, up)
        ctx.scale, ctx.source = scale, source
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, inner, weight, down, up = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1])
        back = _scaled(up.t() @ g.t(), ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            weight = ctx.source.again(weight, grad)
            of_x = (g @ weight).addmm_(back.t(), down).view(x.shape)
        of_down = back @ x.reshape(-1, x.shape[-1])
        return of_x, None, None, of_down, (inner @ g).t(), None, None


class _Convolved(torch.autograd.Function):
    """``x`` is ``[B, in, *size]``, ``down`` ``[rank, in, *kernel]`` and ``up`` ``[out, rank, *1]``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
        source: _Source,
        how: tuple[Any, ...],
    ) -> torch.Tensor:
        convolve: Any = getattr(F, f"conv{weight.ndim - 2}d")
        y: torch.Tensor = convolve(x, weight, bias, *how)
        inner = _scaled(convolve(x, down, None, *how), scale)
        if y.is_contiguous():
            wide = up.flatten(1).expand(len(y), -1, -1)
            y.flatten(2).baddbmm_(wide, inner.flatten(2))
        else:
            y.add_(convolve(inner, up))
        ctx.save_for_backward(x, inner, source.kept(weight), down, up)
        ctx.scale, ctx.source, ctx.how = scale, source, how
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, inner, weight, down, up = ctx.saved_tensors
        needs_x = ctx.needs_input_grad[0]
        g = grad.flatten(2)
        back = _scaled(torch.matmul(up.flatten(1).t(), g), ctx.scale).view(inner.shape)
        of_up = torch.bmm(inner.flatten(2), g.transpose(1, 2)).sum(0).t().view(up.shape)
        of_x, of_down = _gradients(back, x, down, ctx.how, (needs_x, True))
        if needs_x:
            weight = ctx.source.again(weight, grad)
            of_base, _ = _gradients(grad, x, weight, ctx.how, (True, False))
            of_x = of_base.add_(of_x)
        return of_x, None, None, of_down, of_up, None, None, None


def _gradients(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    how: tuple[Any, ...],
    which: tuple[bool, bool],
) -> tuple[Any, Any]:
    """Those of a convolution's input and weight."""
    sides = weight.ndim - 2
    stride, padding, dilation = (
        [value] * sides if isinstance(value, int) else list(value) for value in how
    )
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0] * sides, 1, [*which, False]
    )
    return found[0], found[1]


def _scaled(values: torch.Tensor, scale: float) -> torch.Tensor:
    return values if scale == 1 else values.mul_(scale)
