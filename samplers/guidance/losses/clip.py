# SPDX-License-Identifier: Apache-2.0
"""A picture is drawn to a text: CLIP guidance of unit 2 of Hugging Face's course on diffusion models (its loss is that
of Katherine Crowson's CLIP-guided diffusion).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ....registry import check_limits, option
from .. import cuts
from ..parts import LOSSES, Seen


@LOSSES.register("clip")
@dataclass(frozen=True)
class Clip:
    """Squared angle between the embeddings of a text and of cuts of a picture."""

    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    power: ClassVar[float] = 0.5
    cuts: int = option(
        4,
        "Random parts of the picture that are compared at each step; 0 is the picture as a whole.",
        min=0,
        max=64,
    )
    smallest: float = option(0.08, "Share of the picture in the smallest part.", min=0.01, max=1.0)
    turn: float = option(5.0, "Most degrees by which a part is turned.", min=0.0, max=45.0)
    flip: bool = option(True, "Mirror half of the parts.")

    def __post_init__(self) -> None:
        check_limits(self)

    def __call__(self, seen: Seen) -> torch.Tensor:
        """The mean over the cuts."""
        if seen.text is None or seen.embed is None:
            raise ValueError("clip guidance has no text to compare with")
        if self.cuts:
            limits = (self.smallest, self.turn, self.flip)
            parts = cuts.random(seen.picture, self.cuts, seen.side, *limits, seen.generator)
        else:
            parts = cuts.whole(seen.picture, seen.side)
        return squared_angle(seen.embed(parts), seen.text.to(parts.device)).mean()


def squared_angle(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Half the square of the angle between vectors, which is 2 asin(|u - v| / 2)^2 of unit ones.

    Args:
        u: ``[n, d]``, of any lengths.
        v: ``[1, d]`` or ``[n, d]``.

    Returns:
        ``[n]``, 0..pi^2 / 2; its gradient is finite also where they point to opposite sides.
    """
    u, v = (x / torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (u, v))
    apart, together = (torch.linalg.vector_norm(x, dim=-1) for x in (u - v, u + v))
    return 2 * torch.atan2(apart, together).square()
