# SPDX-License-Identifier: Apache-2.0
"""D with edits (LEDITS++, eq. 5 to 9; arXiv 2311.16711).

eps = eps_u + sum over edits of (+-) s (eps_e - eps_u) M. In every family D is affine in what the network puts out, with
the same factors whatever the text, so that the same holds with D in the place of eps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from . import masks
from .parts import BOTH, DIFFERENCE, Edit


@dataclass(frozen=True, eq=False)
class Part:
    """One edit at one step.

    Attributes:
        edit: Its settings.
        weight: Its scale with its sign.
        denoised: D with its text ``[B, C, ...]``.
        attention: The model's attention on its words ``[B, h, w]``, where its mask is of that.
        mask: Drawn by hand, ``[b, H, W]`` in 0..1; None is everywhere.
    """

    edit: Edit
    weight: float
    denoised: torch.Tensor
    attention: torch.Tensor | None = None
    mask: torch.Tensor | None = None


def edited(base: torch.Tensor, reference: torch.Tensor, parts: Sequence[Part]) -> torch.Tensor:
    """D, edited.

    Args:
        base: D as it is without edits ``[B, C, ...]``.
        reference: D that texts are compared with, of no text or of the picture's ``[B, C, ...]``.
        parts: The edits of this step.

    Returns:
        D ``[B, C, ...]``.
    """
    for part in parts:
        base = base + _term(reference, part)
    return base


def _term(reference: torch.Tensor, part: Part) -> torch.Tensor:
    change = (part.denoised - reference) * part.weight
    if part.mask is not None:
        change = change * masks.of_user(part.mask, change)
    where: list[torch.Tensor] = []
    threshold = part.edit.threshold
    if part.edit.needs_attention:
        if part.attention is None:
            raise ValueError("An edit by attention needs the model's attention on its words.")
        height, width = change.shape[-2:]
        where.append(masks.of_attention(part.attention, threshold, (height, width)))
    if part.edit.mask in (BOTH, DIFFERENCE):
        where.append(masks.of_difference(change, threshold))
    for mask in where:
        change = change * mask.to(change)
    return change
