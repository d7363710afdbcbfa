# SPDX-License-Identifier: Apache-2.0
"""Masks from the graph for the pictures of a dataset."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from .dataset import Dataset
from .names import picture_names, some


def with_masks(dataset: Dataset, masks: Sequence[Tensor], invert: bool = False) -> Dataset:
    """Give each picture a mask.

    Args:
        dataset: The pictures.
        masks: How much each place counts, ``[H, W]`` or ``[B, H, W]`` in 0..1 each; in all one for
            every picture, or one for each, in their order.
        invert: Whether what is black counts, as in masks of what is to be replaced.

    Returns:
        The dataset with the masks; other masks that its pictures had are replaced.

    Raises:
        ValueError: There are not as many masks as pictures, or some are of another size.
    """
    planes = [plane for mask in masks for plane in mask.reshape(-1, *mask.shape[-2:])]
    count = len(dataset)
    if len(planes) not in (1, count):
        raise ValueError(
            f"there are {count} pictures and {len(planes)} masks: give one mask for all, or one for each"
        )
    planes = planes * count if len(planes) == 1 else planes
    planes = [1 - plane for plane in planes] if invert else planes
    names = picture_names(dataset)
    _check_sizes(dataset, planes, names)
    rest = iter(planes)

    def change(part: Dataset) -> Dataset:
        items = [replace(item, mask=next(rest), mask_from_alpha=False) for item in part.items]
        return replace(part, items=tuple(items))

    black = [name for name, plane in zip(names, planes, strict=True) if not bool(plane.any())]
    masked = dataset.map(change)
    if not black:
        return masked
    note = f"the mask is black all over, so that nothing counts: {some(black)}"
    return replace(masked, warnings=(*masked.warnings, note))


def _check_sizes(dataset: Dataset, planes: Sequence[Tensor], names: Sequence[str]) -> None:
    wrong = []
    for item, plane, name in zip(dataset.items, planes, names, strict=True):
        size, wanted = (plane.shape[1], plane.shape[0]), item.measure()
        if size != wanted:
            wrong.append(f"{name} ({size[0]} x {size[1]} for {wanted[0]} x {wanted[1]} px)")
    if wrong:
        raise ValueError(
            f"masks of another size than their picture: {some(wrong)}. Scale them alike; Load Image gives an empty "
            "64 x 64 mask for a picture without transparency"
        )
