# SPDX-License-Identifier: Apache-2.0
"""The gradient of the guidance, and what it makes of D.

A model that keeps the variance, x = sqrt(a) y + sqrt(1-a) n, is guided by x -= dL/dx with n as it was, and a DDIM step:
the clean picture becomes x0' = x0 - (1/a) dL/dx0. With 1/a = 1 + sigma^2 the same holds in every family, and so does

    x_next = signal_next x0' + noise_next n,

which is an Euler step with D' = x0 + (x0' - x0) / share, because such a step puts only share of a change of D into x.
Through the network it is the gradient by y = x / signal in the place of that by x0.
"""

import math
from collections.abc import Callable, Sequence

import torch

from .parts import Seen, Term
from .steps import Step

View = Callable[[torch.Tensor, int, Sequence[Term]], Sequence[Seen]]


def slope(
    terms: Sequence[Term], denoised: torch.Tensor, step: Step, view: View
) -> tuple[torch.Tensor, list[list[float]]]:
    """Weighted gradient of the losses by D, of each picture by itself.

    Args:
        terms: Those that act at this step.
        denoised: D ``[B, C, h, w]``.
        step: The step.
        view: Makes of D of one picture ``[1, C, h, w]`` and its number what each term may look at.

    Returns:
        The gradient ``[B, C, h, w]``, and the losses by picture and term, without weights.

    Raises:
        RuntimeError: A loss or the gradient is not finite.
    """
    parts, losses = [], []
    for index in range(denoised.shape[0]):
        with torch.enable_grad():
            x = denoised[index : index + 1].detach().clone().requires_grad_()
            values = [
                term.loss(seen) for term, seen in zip(terms, view(x, index, terms), strict=True)
            ]
            pairs = zip(terms, values, strict=True)
            total = torch.stack([term.weight(step) * value for term, value in pairs]).sum()
            parts.append(torch.autograd.grad(total, x)[0])
        losses.append([float(value.detach()) for value in values])
    gradient = torch.cat(parts)
    is_finite = all(math.isfinite(value) for values in losses for value in values)
    if not is_finite or not bool(torch.isfinite(gradient).all()):
        raise RuntimeError(
            f"The guidance of step {step.index + 1} of {step.count} is not finite: lower its strength, or let it begin "
            "later with start_percent."
        )
    return gradient, losses


def change(gradient: torch.Tensor, step: Step, *, is_by_input: bool = False) -> torch.Tensor:
    """What is added to D for a gradient.

    Args:
        gradient: By D, or by the model's input x, ``[B, C, h, w]``.
        step: The step.
        is_by_input: Whether it is by x.

    Returns:
        The change of D ``[B, C, h, w]``.
    """
    scale = step.signal if is_by_input else 1.0
    return gradient * (-scale / step.share)
