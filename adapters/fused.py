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
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # that layers compute in
_CLOSE = 1e-2  # of bf16


def direct(module: nn.Module, form: Form) -> Direct | None:
    """How to compute a layer and its LoRA together, without the layer's own forward.

    Args:
        module: The layer, with its own forward.
        form: Its form.

    Returns:
        What takes ``x``, ``down``, ``up`` and the scale, and returns the adapted output; None in its place where the
        weight is not there as it is to be used. None where the layer does more than its form says.
    """
    if not _is_plain(module, form):
        return None
    given: Any = module
    has_functions = hasattr(
        module, "weight_function"
    )  # the host's layers pass their weights through these

    def compute(
        x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float
    ) -> torch.Tensor | None:
        weight, bias = given.weight, given.bias
        if weight.dtype != x.dtype or weight.device != x.device or weight.is_inference():
            return None
        if has_functions and (given.weight_function or given.bias_function):
            return None
        parts = (x, weight, bias, down.to(x.dtype), up.to(x.dtype), scale)
        made: torch.Tensor
        if form.kernel:
            made = _Convolved.apply(*parts, form.how)  # type: ignore[no-untyped-call]
        else:
            made = _Linear.apply(*parts)  # type: ignore[no-untyped-call]
        return made

    return compute


def _is_plain(module: nn.Module, form: Form) -> bool:
    """Whether a layer computes what its form, weight and bias say, and nothing else; found by asking it."""
    given: Any = module
    weight, bias = given.weight, given.bias
    if type(weight) not in (torch.Tensor, nn.Parameter) or weight.device.type == "meta":
        return False
    shape = (form.rows, form.inputs, *form.kernel)
    if weight.shape != shape or weight.dtype not in _DTYPES or weight.requires_grad:
        return False
    if any(isinstance(value, str) for value in form.how):
        return False
    with torch.inference_mode(False), torch.no_grad():
        weight = weight.detach().clone() if weight.is_inference() else weight
        reach = (
            [d * (k - 1) + 1 for d, k in zip(form.how[2], form.kernel, strict=True)]
            if form.kernel
            else []
        )
        count = form.inputs * math.prod(reach)
        x = torch.linspace(-1, 1, count, dtype=weight.dtype, device=weight.device)
        x = x.view(1, form.inputs, *reach)
        expected = form.apply(x, weight)
        if bias is not None:
            expected = expected + form.channels(bias.to(weight))
        try:
            found = given.forward(x)
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return False
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
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y = x.new_empty(*x.shape[:-1], len(weight))  # no view: the network may write to it
        out = y.view(-1, len(weight))
        if bias is None:
            torch.mm(flat, weight.t(), out=out)
        else:
            torch.addmm(bias, flat, weight.t(), out=out)
        inner = _scaled(down @ flat.t(), scale)
        out.addmm_(inner.t(), up.t())
        ctx.save_for_backward(x, inner, weight, down, up)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, inner, weight, down, up = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1])
        back = _scaled(up.t() @ g.t(), ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (g @ weight).addmm_(back.t(), down).view(x.shape)
        of_down = back @ x.reshape(-1, x.shape[-1])
        return of_x, None, None, of_down, (inner @ g).t(), None


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
        ctx.save_for_backward(x, inner, weight, down, up)
        ctx.scale, ctx.how = scale, how
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
            of_base, _ = _gradients(grad, x, weight, ctx.how, (True, False))
            of_x = of_base.add_(of_x)
        return of_x, None, None, of_down, of_up, None, None


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
