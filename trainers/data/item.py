# SPDX-License-Identifier: Apache-2.0
"""One picture of a dataset: captions, pixels or a file, and what else is known about it.

Nothing is read before it is asked for, so that a large folder costs no memory.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...plain import plain
from .caption_files import check_captions
from .images import MIN_PX, ImageError, image_size, read_alpha, read_image, vanished

_CHUNK_BYTES = 1 << 20
MAX_REPEATS = 100_000


@dataclass(frozen=True, eq=False)
class Item:
    """One picture with its captions, given by exactly one of a path and pixels.

    Attributes:
        captions: The texts it is trained with; one text may be given for a tuple of one.
        path: The picture's file.
        pixels: The picture, ``[H, W, 3]`` in 0..1; copied to an fp32 CPU tensor of the item's own,
            so that nothing later in a graph can change it.
        size: Width and height of the upright picture, where known already; see `measure`.
        mask: How much each place counts: a picture file whose white counts, or ``[H, W]`` in 0..1,
            copied like the pixels.
        mask_from_alpha: Whether the file's own transparency is the mask; what is opaque counts.
        repeats: How often an epoch has the picture.
        weight: Factor of its loss.
        label: Number of its class, for class-conditional models.

    Raises:
        ValueError: Both or none of path and pixels are given, the pixels are no picture, the mask is
            none or of another size, or a number is out of range.
    """

    captions: tuple[str, ...]
    path: str | None = None
    pixels: Tensor | None = None
    size: tuple[int, int] | None = None
    mask: str | Tensor | None = None
    mask_from_alpha: bool = False
    repeats: int = 1
    weight: float = 1.0
    label: int | None = None

    def __post_init__(self) -> None:
        given = (self.captions,) if isinstance(self.captions, str) else tuple(self.captions)
        try:
            check_captions(given)
        except ValueError as error:
            raise ValueError(f"{self.name or 'an image'} {error}") from error
        object.__setattr__(self, "captions", given or ("",))
        object.__setattr__(self, "weight", float(self.weight))
        if (self.path is None) == (self.pixels is None):
            raise ValueError("an item needs either a path or pixels, and not both")
        if self.pixels is not None:
            pixels = _own_pixels(self.pixels)
            object.__setattr__(self, "pixels", pixels)
            object.__setattr__(self, "size", (pixels.shape[1], pixels.shape[0]))
        self._check_mask()
        self._check_numbers()

    @property
    def caption(self) -> str:
        """The first caption."""
        return self.captions[0]

    @property
    def name(self) -> str:
        """File name of the picture, as messages say it; empty when it came as pixels."""
        return "" if self.path is None else plain(Path(self.path).name)

    @property
    def has_mask(self) -> bool:
        """Whether there may be a mask: with ``mask_from_alpha`` the file decides."""
        return self.mask is not None or self.mask_from_alpha

    @torch.inference_mode(False)
    def read(self) -> Tensor:
        """Decode the picture.

        Returns:
            The upright picture, fp32 ``[H, W, 3]`` in 0..1, a tensor of the caller's own.

        Raises:
            ImageError: The file cannot be read.
        """
        if self.pixels is not None:
            return self.pixels.clone()
        return read_image(str(self.path))

    @torch.inference_mode(False)
    def read_mask(self) -> Tensor | None:
        """Decode the mask.

        Returns:
            fp32 ``[H, W]`` in 0..1 of the upright picture's size, a tensor of the caller's own; None
            where there is none.

        Raises:
            ImageError: The file cannot be read, or is of another size than the picture.
        """
        if self.mask_from_alpha:
            return read_alpha(str(self.path))
        if self.mask is None:
            return None
        if isinstance(self.mask, Tensor):
            return self.mask.clone()
        self.check_mask_size()
        return read_image(self.mask).mean(2)

    def check_mask_size(self) -> None:
        """Compare the size of the mask's file with the picture's; only headers are read.

        Raises:
            ImageError: A file cannot be read, or the sizes differ.
        """
        if not isinstance(self.mask, str):
            return
        size, wanted = image_size(self.mask), self.measure()
        if size != wanted:
            raise ImageError(
                Path(self.mask).name,
                f"the mask is {size[0]} x {size[1]} px, its picture {self.name or 'in the graph'} "
                f"{wanted[0]} x {wanted[1]} px: make them the same size",
            )

    def measure(self) -> tuple[int, int]:
        """Find out the size of the picture, from the file's header if it is not known.

        Returns:
            Width and height of the upright picture.

        Raises:
            ImageError: The file cannot be read.
        """
        return image_size(str(self.path)) if self.size is None else self.size

    def picture_digest(self) -> str:
        """Hash the picture's contents: the file's bytes or the pixels' bytes.

        Returns:
            A SHA-256 in hexadecimal.

        Raises:
            ImageError: The file is gone.
            OSError: The file cannot be read.
        """
        if self.pixels is not None:
            return _tensor_digest(self.pixels)
        return _file_digest(str(self.path))

    def mask_digest(self) -> str:
        """Hash the mask's contents; of a mask that is the picture's alpha only the word.

        Returns:
            A SHA-256 in hexadecimal, "alpha", or nothing where there is no mask.

        Raises:
            ImageError: The file is gone.
            OSError: The file cannot be read.
        """
        if self.mask_from_alpha:
            return "alpha"
        if self.mask is None:
            return ""
        return (
            _tensor_digest(self.mask) if isinstance(self.mask, Tensor) else _file_digest(self.mask)
        )

    def _check_mask(self) -> None:
        if self.mask_from_alpha and (self.mask is not None or self.path is None):
            raise ValueError(
                "a mask from alpha needs a picture file and no other mask: take one of the two"
            )
        if isinstance(self.mask, Tensor):
            object.__setattr__(self, "mask", _own_mask(self.mask, self.size))

    def _check_numbers(self) -> None:
        if not 1 <= self.repeats <= MAX_REPEATS:
            raise ValueError(f"repeats are {self.repeats}: 1 to {MAX_REPEATS} are allowed")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"the weight of a picture is {self.weight}: 0 or more is allowed")
        if self.label is not None and self.label < 0:
            raise ValueError(f"a class label is {self.label}: 0 or more is allowed")


def _own_pixels(pixels: Tensor) -> Tensor:
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels are {list(pixels.shape)}, a picture is [height, width, 3]")
    if min(pixels.shape[:2]) < MIN_PX:
        height, width = pixels.shape[:2]
        raise ValueError(f"an image is {width} x {height} px, the least is {MIN_PX} px a side")
    if not pixels.is_floating_point():
        raise ValueError(f"pixels are {pixels.dtype}, a picture is floating point in 0..1")
    return _own(pixels, "an image")


def _own_mask(mask: Tensor, size: tuple[int, int] | None) -> Tensor:
    if mask.ndim != 2 or not mask.is_floating_point():
        raise ValueError(
            f"a mask is {mask.dtype} {list(mask.shape)}, it has to be floating point [height, width]"
        )
    if size is not None and (mask.shape[1], mask.shape[0]) != size:
        raise ValueError(
            f"the mask is {mask.shape[1]} x {mask.shape[0]} px, its picture {size[0]} x {size[1]} px: "
            "make them the same size"
        )
    return _own(mask, "a mask")


def _own(tensor: Tensor, what: str) -> Tensor:
    # A tensor made in inference mode can never be used in training, hence the copy outside of it.
    with torch.inference_mode(False), torch.no_grad():
        own = tensor.detach().clone().to("cpu", torch.float32)
        if not torch.isfinite(own).all():
            raise ValueError(f"{what} holds NaN or infinite values: look at the node that made it")
        return own.clamp_(0, 1)


def _file_digest(path: str) -> str:
    sha = hashlib.sha256(b"file")
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                sha.update(chunk)
    except FileNotFoundError as error:
        raise vanished(path) from error
    return sha.hexdigest()


def _tensor_digest(tensor: Tensor) -> str:
    shape = ",".join(map(str, tensor.shape)).encode()
    return sha(b"pixels", shape, tensor.contiguous().numpy().tobytes())


def sha(*parts: bytes) -> str:
    """SHA-256 over parts, each with its length, which keeps ("ab", "c") and ("a", "bc") apart."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
