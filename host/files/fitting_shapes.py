# SPDX-License-Identifier: Apache-2.0
"""Whether what the host's loader made of a file has the shape of the weight it is for.

The host itself finds out when it loads the model: it logs an error then, and leaves the weight as it is.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

Parts = tuple[Any, ...]


def fits(patch: Any, place: Any, weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether a patch can be applied; True where only the host can tell.

    Args:
        patch: What the host's loader made.
        place: The weight's name, with an offset where it is for a part of it.
        weights: The model's weights by name.
    """
    weight = weights.get(place if isinstance(place, str) else place[0])
    # Packed formats have other shapes than what they stand for.
    if weight is None or not weight.is_floating_point() or not isinstance(place, str):
        return True
    if isinstance(patch, tuple) and patch[0] in ("diff", "set") and len(patch[1]) == 1:
        return bool(patch[1][0].shape == weight.shape)
    kind = getattr(patch, "name", "")
    if kind not in _SHAPES:
        return True
    index, shape_of = _SHAPES[kind]
    parts = tuple(patch.weights)
    try:
        return _takes(parts[index], weight) and shape_of(parts, weight)
    except (
        AttributeError,
        IndexError,
    ):  # a tensor of too few dimensions, or none where one belongs
        return False


def _takes(scale: Any, weight: torch.Tensor) -> bool:
    """Whether the host can scale rows or columns of the weight by this part of a DoRA."""
    if scale is None:
        return True
    if weight.ndim < 2:
        return False
    rows, columns = ([n, *(1,) * (weight.ndim - 2)] for n in weight.shape[:2])
    return list(scale.shape) in ([rows[0], 1, *rows[1:]], [1, *columns])


def _is(weight: torch.Tensor, rows: int, columns: int) -> bool:
    return bool(rows == weight.shape[0] and rows * columns == weight.numel())


def _lora(parts: Parts, weight: torch.Tensor) -> bool:
    up, down, _, mid, _, reshape = parts[:6]
    if mid is not None or reshape is not None:
        return True
    is_product = up.flatten(1).shape[1] == down.shape[0]
    return bool(is_product and _is(weight, up.shape[0], down.flatten(1).shape[1]))


def _loha(parts: Parts, weight: torch.Tensor) -> bool:
    w1_a, w1_b, _, w2_a, w2_b, core = parts[:6]
    if core is not None:
        return True
    halves = ((w1_a, w1_b), (w2_a, w2_b))
    return all(a.shape[1] == b.shape[0] and _is(weight, a.shape[0], b.shape[1]) for a, b in halves)


def _lokr(parts: Parts, weight: torch.Tensor) -> bool:
    w1, w2, _, w1_a, w1_b, w2_a, w2_b, core = parts[:8]
    if core is not None:
        return True
    pairs = (w1, w1_a, w1_b), (w2, w2_a, w2_b)
    sides = []
    for whole, a, b in pairs:
        if whole is None and (a is None or b is None):
            return False
        rows = (a if whole is None else whole).shape[0]
        sides.append((rows, b.shape[1] if whole is None else whole.numel() // rows))
    (rows_1, columns_1), (rows_2, columns_2) = sides
    return _is(weight, rows_1 * rows_2, columns_1 * columns_2)


def _blocks(parts: Parts, weight: torch.Tensor) -> bool:
    return bool(math.prod(parts[0].shape[-3:-1]) == weight.shape[0])


# Where a kind keeps the scale of a DoRA among its parts, and whether they have the weight's shape.
_SHAPES: dict[str, tuple[int, Callable[[Parts, torch.Tensor], bool]]] = {
    "lora": (4, _lora),
    "loha": (7, _loha),
    "lokr": (8, _lokr),
    "oft": (3, _blocks),
    "boft": (3, _blocks),
}
