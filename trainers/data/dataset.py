# SPDX-License-Identifier: Apache-2.0
"""Datasets as immutable values: what flows on a GRAFT_DATASET wire.

An item is a caption and a picture, given by a file or by pixels. Nothing here is read before it
is asked for, so that a large folder costs no memory.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...registry import check_limits, option
from .buckets import size_for
from .images import MIN_PX, image_size, read_image

_CHUNK_BYTES = 1 << 20
_NAMED = 5


@dataclass(frozen=True, eq=False)
class Item:
    """One picture and its caption, given by exactly one of a path and pixels.

    Attributes:
        caption: The text it is trained with.
        path: The picture's file.
        pixels: The picture, ``[H, W, 3]`` in 0..1; copied to an fp32 CPU tensor of the item's own,
            so that nothing later in a graph can change it.
        size: Width and height of the upright picture, where known already; see `measure`.

    Raises:
        ValueError: Both or none of path and pixels are given, or the pixels are no picture.
    """

    caption: str
    path: str | None = None
    pixels: Tensor | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.pixels is None):
            raise ValueError("an item needs either a path or pixels, and not both")
        if self.pixels is not None:
            pixels = _own_pixels(self.pixels)
            object.__setattr__(self, "pixels", pixels)
            object.__setattr__(self, "size", (pixels.shape[1], pixels.shape[0]))

    @property
    def name(self) -> str:
        """File name of the picture; empty when it came as pixels."""
        return "" if self.path is None else Path(self.path).name

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
            OSError: The file cannot be read.
        """
        if self.pixels is not None:
            shape = ",".join(map(str, self.pixels.shape)).encode()
            return _sha(b"pixels", shape, self.pixels.contiguous().numpy().tobytes())
        sha = hashlib.sha256(b"file")
        with Path(str(self.path)).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                sha.update(chunk)
        return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures with captions, and how they are to be trained on.

    Attributes:
        items: The pictures.
        trigger: The word that the captions call the concept by, if there is one.
        resolution: Side of the square whose area no trained picture exceeds, in pixels.
        source: Where they came from, for people only.
        warnings: What was odd about them, for people only.
        crops: Crops of each picture that are trained on: the whole one, and random ones beyond the first.

    Raises:
        ValueError: There are no items, the resolution is too small, or crops are out of range.
    """

    items: tuple[Item, ...]
    trigger: str = ""
    resolution: int = 1024
    source: str = ""
    warnings: tuple[str, ...] = ()
    crops: int = option(
        1,
        "Crops of each picture that are trained on: 1 is the whole picture, more add random crops of 75 to 100 % of "
        "its width and height. For few pictures, where the place of things is not what is to be learned.",
        min=1,
        max=64,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(self.items))
        object.__setattr__(self, "warnings", tuple(self.warnings))
        if not self.items:
            raise ValueError("the dataset holds no images: give it at least one")
        if self.resolution < MIN_PX:
            raise ValueError(
                f"resolution is {self.resolution} px, the least is {MIN_PX}: "
                "use what the model was made for, 1024 for SDXL or 512 for SD 1.5"
            )

        check_limits(self)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.items)

    def digest(self) -> str:
        """Hash pictures, captions, their order, trigger and resolution.

        File names, folders and times do not count: a copy of a folder has its digest.

        Returns:
            A SHA-256 in hexadecimal.

        Raises:
            OSError: A file cannot be read.
        """
        settings = (self.trigger, str(self.resolution), str(self.crops))
        parts = [b"graft dataset 2", *(text.encode() for text in settings)]
        for item in self.items:
            parts += [item.picture_digest().encode(), item.caption.encode()]
        return _sha(*parts)


def describe(dataset: Dataset) -> str:
    """Return a short report for people: buckets, captions, duplicates, warnings.

    Args:
        dataset: What to report on; of files only headers and equally long ones are read.

    Returns:
        Several lines of text.

    Raises:
        ImageError: A file cannot be read.
    """
    names = [item.name or f"image {n}" for n, item in enumerate(dataset.items, 1)]
    source = f' from "{dataset.source}"' if dataset.source else ""
    images = _count(len(dataset), "image")
    crops = f", {dataset.crops} crops of each" if dataset.crops > 1 else ""
    lines = [f"{images}{source}, resolution {dataset.resolution}{crops}", "buckets:"]
    buckets = Counter(size_for(*item.measure(), dataset.resolution) for item in dataset.items)
    for (width, height), count in sorted(buckets.items(), key=lambda pair: (-pair[1], pair[0])):
        lines.append(f"  {width:>5} x {height:<5} {_count(count, 'image')}")
    lines += _caption_lines(dataset, names)
    for group in _duplicates(dataset, names):
        lines.append("same picture twice: " + " = ".join(group))
    lines += [f"warning: {text}" for text in dataset.warnings]
    return "\n".join(lines)


def _own_pixels(pixels: Tensor) -> Tensor:
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels are {list(pixels.shape)}, a picture is [height, width, 3]")
    if min(pixels.shape[:2]) < MIN_PX:
        height, width = pixels.shape[:2]
        raise ValueError(f"an image is {width} x {height} px, the least is {MIN_PX} px a side")
    if not pixels.is_floating_point():
        raise ValueError(f"pixels are {pixels.dtype}, a picture is floating point in 0..1")
    # A tensor made in inference mode can never be used in training, hence the copy outside of it.
    with torch.inference_mode(False), torch.no_grad():
        own = pixels.detach().clone().to("cpu", torch.float32)
        if not torch.isfinite(own).all():
            raise ValueError("an image holds NaN or infinite values: look at the node that made it")
        return own.clamp_(0, 1)


def _sha(*parts: bytes) -> str:
    sha = hashlib.sha256()
    for part in parts:
        # The length keeps ("ab", "c") and ("a", "bc") apart.
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()


def _caption_lines(dataset: Dataset, names: list[str]) -> list[str]:
    captions = [item.caption for item in dataset.items]
    missing = [name for name, caption in zip(names, captions, strict=True) if not caption]
    given = f"{len(captions) - len(missing)} of {len(captions)}"
    lines = [f"captions: {given}, {len(set(captions) - {''})} distinct"]
    if missing:
        lines.append(f"without a caption: {_some(missing)}")
    if dataset.trigger:
        with_it = sum(dataset.trigger in caption for caption in captions)
        lines.append(f'trigger "{dataset.trigger}": in {with_it} of {len(captions)} captions')
    return lines


def _duplicates(dataset: Dataset, names: list[str]) -> list[list[str]]:
    """Return groups of names with equal contents; only files of equal length are read."""
    by_bytes = defaultdict(list)
    for index, item in enumerate(dataset.items):
        pixels = item.pixels
        key = tuple(pixels.shape) if pixels is not None else Path(str(item.path)).stat().st_size
        by_bytes[key].append(index)
    groups = defaultdict(list)
    for indices in by_bytes.values():
        if len(indices) > 1:
            for index in indices:
                groups[dataset.items[index].picture_digest()].append(names[index])
    return [group for group in groups.values() if len(group) > 1]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
