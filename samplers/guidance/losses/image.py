# SPDX-License-Identifier: Apache-2.0
"""A picture is drawn to another one, pixel by pixel."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ....registry import check_limits, option
from ..distances import DISTANCES
from ..parts import LOSSES, Seen


@LOSSES.register("image")
@dataclass(frozen=True)
class Image:
    """Mean distance of the pixels of two pictures."""

    needs: ClassVar[frozenset[str]] = frozenset({"target"})
    power: ClassVar[float] = 1.0
    metric: str = option(
        "l2",
        "l1: as strong near the picture as far from it. l2: weaker the nearer.",
        choices=tuple(DISTANCES),
    )

    def __post_init__(self) -> None:
        check_limits(self)

    def __call__(self, seen: Seen) -> torch.Tensor:
        """The mean over all pixels and channels."""
        if seen.target is None:
            raise ValueError("image guidance has no picture to compare with")
        return DISTANCES[self.metric](seen.picture - seen.target)
