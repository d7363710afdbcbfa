# SPDX-License-Identifier: Apache-2.0
"""How pictures are framed: their buckets, crops and mirror images.

A picture has several views, each a crop of it and, with flipping, the mirror image of each. Which
they are is settled beforehand, so that each is encoded once and a step only chooses one.
"""

from dataclasses import dataclass

from torch import Tensor

from ...registry import check_limits, option
from .buckets import LEAST_CROP, Fitted, fit, random_place, size_for, step_for

CENTER, RANDOM = "center", "random"


@dataclass(frozen=True)
class View:
    """One way to frame a picture: what `fit` is given beside the pixels.

    Attributes:
        size: Width and height that it is trained at.
        zoom: How much larger than needed the picture is scaled.
        place: Where the crop is, down and right, from 0 to 1.
        flip: Whether left and right change places.
    """

    size: tuple[int, int]
    zoom: float = 1.0
    place: tuple[float, float] = (0.5, 0.5)
    flip: bool = False


@dataclass(frozen=True)
class Framing:
    """Buckets and crops of a dataset; without options, as its resolution and crops say.

    Raises:
        ValueError: A field is outside its limits, or the sides contradict each other.
    """

    buckets: bool = option(
        True,
        "Sort pictures by shape into buckets, so that little of each is cropped. Off: all are squares.",
    )
    step: int = option(
        0,
        "Both sides are multiples of it, in pixels. 0: 64 px, and 8 px for pictures below 256 px.",
        min=0,
        max=1024,
    )
    min_side: int = option(
        0, "The shortest side of a bucket, in pixels; 0 for no limit.", min=0, max=16384
    )
    max_side: int = option(
        0, "The longest side of a bucket, in pixels; 0 for no limit.", min=0, max=16384
    )
    upscale: bool = option(False, "Scale smaller pictures up to the resolution.")
    flip: bool = option(
        False,
        "Train the mirror image of each picture, too. Not for what has a left and a right, such as text or faces.",
    )
    crop: str = option(
        CENTER,
        "center: the first crop is the whole picture, cut in the center to its bucket. random: that is a random crop, "
        "too.",
        choices=(CENTER, RANDOM),
    )
    smallest_crop: float = option(
        LEAST_CROP,
        "The least share of width and height that a random crop shows; at 1 only its place is random.",
        min=0.1,
        max=1.0,
    )
    outside: float = option(
        0.0, "How much places outside of a mask count, from 0 to 1.", min=0.0, max=1.0
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.step % 8 or (self.max_side and self.max_side < self.min_side):
            raise ValueError(
                f"step is {self.step} px and sides are {self.min_side} to {self.max_side} px: the step has to be a "
                "multiple of 8, as of an autoencoder's cells, and the longest side not below the shortest"
            )

    def size(self, width: int, height: int, resolution: int) -> tuple[int, int]:
        """The bucket of a picture.

        Args:
            width: Of the picture, in pixels.
            height: Of the picture, in pixels.
            resolution: Side of the square whose area is the limit.

        Returns:
            Width and height.

        Raises:
            ValueError: No size fits the resolution, the step and the sides.
        """
        if not self.buckets:
            step = self.step or step_for(width, height, resolution)
            side = resolution if self.upscale else min(width, height, resolution)
            width, height = (max(step, side // step * step),) * 2
        sides = (self.min_side, self.max_side)
        return size_for(width, height, resolution, self.step, sides, self.upscale)

    def views(self, crops: int) -> int:
        """The number of views of a picture with so many crops."""
        return crops * (2 if self.flip else 1)

    def view(self, size: tuple[int, int], picture: int, number: int, crops: int) -> View:
        """One view of a picture.

        Args:
            size: Its bucket.
            picture: Number of the picture in its dataset.
            number: Number of the view: first all crops, then their mirror images.
            crops: Crops of each picture.

        Returns:
            The view; the same one for the same arguments.

        Raises:
            ValueError: There is no such view.
        """
        if not 0 <= number < self.views(crops):
            raise ValueError(f"view {number} of a picture with {self.views(crops)} views")
        crop, flip = number % crops, number >= crops
        if crop == 0 and self.crop == CENTER:
            return View(size, flip=flip)
        zoom, place = random_place(picture, crop, self.smallest_crop)
        return View(size, zoom, place, flip)

    def fitted(self, pixels: Tensor, mask: Tensor | None, view: View) -> Fitted:
        """Frame a picture.

        Args:
            pixels: The picture, ``[H, W, 3]`` in 0..1.
            mask: How much each place counts, ``[H, W]`` in 0..1, or None.
            view: How.

        Returns:
            The picture and the mask at the size of the view.
        """
        if mask is not None and self.outside > 0:
            mask = self.outside + (1 - self.outside) * mask
        return fit(pixels, view.size, view.zoom, view.place, mask, view.flip)
