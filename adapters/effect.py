# SPDX-License-Identifier: Apache-2.0
"""What a changed weight changes of a layer's output, for a change that is not merged: it is added beside the layer.

Layers and norms are linear in their weight: (W + dW) x = W x + dW x, and dW x of a LoRA needs no dW.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .form import Form

Rows = tuple[int, int]


class Effect:
    """A function of a layer's input, with its tensors where the layer is computed.

    Args:
        apply: Gives what is added to the output, of the input and of the tensors.
        tensors: As they are kept.
    """

    def __init__(
        self, apply: Callable[..., torch.Tensor], tensors: tuple[torch.Tensor, ...]
    ) -> None:
        self.apply, self.tensors = apply, tensors
        self._here: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, ...]] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """What is added to the output, of the input ``[..., in]`` or ``[B, in, *size]``."""
        at = (x.device, x.dtype)
        if at not in self._here:
            self._here[at] = tuple(tensor.to(*at) for tensor in self.tensors)
        return self.apply(x, *self._here[at])

    def release(self) -> None:
        """Give up the copies where the layer is computed."""
        self._here.clear()


def low_rank(
    form: Form, up: torch.Tensor, down: torch.Tensor, scale: float, rows: Rows | None = None
) -> Effect:
    """Of dW = scale up down.

    Args:
        form: Of the layer.
        up: ``[out, rank, *ones]``, of ``rows`` where these are given.
        down: ``[rank, in, *kernel]``.
        scale: What the product is multiplied by.
        rows: The first one of the outputs that are changed, and how many; all where it is None.
    """
    rank = down.shape[0]
    tensors = (
        (up.float() * scale).reshape(-1, rank),
        down.float().reshape(rank, form.inputs, *form.kernel),
    )

    def apply(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        return _among(form, form.point(form.apply(x, down), up), rows)

    return Effect(apply, tensors)


def dense(form: Form, change: torch.Tensor, rows: Rows | None = None) -> Effect:
    """Of any dW ``[out, in, *kernel]``, of ``rows`` where these are given."""

    def apply(x: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        return _among(form, form.apply(x, change), rows)

    return Effect(apply, (change,))


def bias(form: Form, change: torch.Tensor) -> Effect:
    """Of a change of the bias, ``[out]``."""

    def apply(x: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        if form.kernel:
            return form.channels(change).unsqueeze(0)
        return change.expand(*x.shape[:-1], -1)

    return Effect(apply, (change,))


def of_norm(module: Any, parameter: str, change: torch.Tensor) -> Effect | None:
    """Of a change of a normalization's ``weight`` or ``bias``, ``[channels]``; None for kinds that are not known."""
    grouped = hasattr(module, "num_groups")
    if not grouped and not isinstance(module, nn.LayerNorm):
        return None
    eps, groups = float(module.eps), getattr(module, "num_groups", 0)

    def apply(x: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        shape = (1, -1, *(1,) * (x.ndim - 2)) if grouped else (-1,)
        if parameter == "bias":
            return change.reshape(shape).expand_as(x)
        wide = x.float()
        normed = (
            F.group_norm(wide, groups, eps=eps)
            if grouped
            else F.layer_norm(wide, x.shape[-1:], eps=eps)
        )
        return normed.to(x.dtype) * change.reshape(shape)

    return Effect(apply, (change,))


def _among(form: Form, change: torch.Tensor, rows: Rows | None) -> torch.Tensor:
    """The change of some outputs among all of them."""
    if rows is None:
        return change
    start, count = rows
    after = form.rows - start - count
    return F.pad(change, (*(0, 0) * len(form.kernel), start, after))
