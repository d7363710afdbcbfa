# SPDX-License-Identifier: Apache-2.0
"""Every pixel is drawn to one color (color_loss of unit 2 of Hugging Face's course on diffusion models).

There the mean is over the batch as well, so that a picture of a batch of four is guided by a quarter.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

import torch

from ....plain import plain
from ....registry import check_limits, option
from ..distances import DISTANCES
from ..parts import LOSSES, Seen

_HEX = re.compile(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")
_NUMBERS = re.compile(r"(\d{1,3})[ ,]+(\d{1,3})[ ,]+(\d{1,3})")


@LOSSES.register("color")
@dataclass(frozen=True)
class Color:
    """Mean distance of all pixels from a color."""

    needs: ClassVar[frozenset[str]] = frozenset()
    power: ClassVar[float] = 1.0
    color: str = option("#1ae680", "The color, as #1ae680 or as 26 230 128.")
    metric: str = option(
        "l1",
        "l1: as strong near the color as far from it. l2: weaker the nearer.",
        choices=tuple(DISTANCES),
    )

    def __post_init__(self) -> None:
        check_limits(self)
        _ = self.rgb

    @property
    def rgb(self) -> tuple[float, float, float]:
        """The color in 0..1.

        Raises:
            ValueError: It is not a color.
        """
        text = self.color.strip()
        found = _HEX.fullmatch(text)
        numbers = [int(part, 16) for part in found.groups()] if found else []
        if not found and (found := _NUMBERS.fullmatch(text)):
            numbers = [int(part) for part in found.groups()]
        if len(numbers) != 3 or max(numbers) > 255:
            raise ValueError(
                f"color is '{plain(self.color, 100)}'; it must be like #1ae680, or three numbers from 0 to 255: "
                "26 230 128."
            )
        red, green, blue = (number / 255 for number in numbers)
        return red, green, blue

    def __call__(self, seen: Seen) -> torch.Tensor:
        """The mean over all pixels and channels."""
        color = seen.picture.new_tensor(self.rgb).view(1, 3, 1, 1) * 2 - 1
        return DISTANCES[self.metric](seen.picture - color)
