# SPDX-License-Identifier: Apache-2.0
"""Whether what the host's loader made of a file has the shape of the weight it is for.

The host itself finds out when it loads the model: it logs an error then, and leaves the weight as it is.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch

Parts = tuple[Any, ...]
Shape = tuple[int, ...]
_WEIGHT = ".weight"


def fits(patch: Any, place: Any, weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether a patch can be applied; True where only the host can tell.

    Args:
        patch: What the host's loader made.
        place: The weight's name, with an offset where it is for a part of it.
        weights: The model's weights by name.
    """
    return _trouble(patch, place, weights) is None


def told(
    loaded: Mapping[Any, Any], fitting: Collection[Any], weights: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    """``diffusion_model.output_blocks.1.1.proj_in (80, 64) for (64, 64)``, for each patch that does not fit.

    Args:
        loaded: What the host's loader made, by place.
        fitting: The places of those that fit.
        weights: The model's weights by name.

    Yields:
        The layer, the shape of its change and that of its weight.
    """
    for place, patch in loaded.items():
        trouble = None if place in fitting else _trouble(patch, place, weights)
        if trouble is not None:
            yield f"{place.removesuffix(_WEIGHT)} {trouble}"


def _trouble(patch: Any, place: Any, weights: Mapping[str, torch.Tensor]) -> str | None:
    """Both shapes of a patch that does not fit; None where it fits, or only the host can tell."""
    weight = weights.get(place if isinstance(place, str) else place[0])
    # Packed formats have other shapes than what they stand for.
    if weight is None or not weight.is_floating_point() or not isinstance(place, str):
        return None
    if isinstance(patch, tuple) and patch[0] in ("diff", "set") and len(patch[1]) == 1:
        return _compared(tuple(patch[1][0].shape), tuple(weight.shape))
    kind = getattr(patch, "name", "")
    if kind not in _SHAPES:
        return None
    index, shape_of = _SHAPES[kind]
    parts = tuple(patch.weights)
    matrix = (len(weight), weight[0].numel()) if weight.ndim and len(weight) else ()
    try:
        shape = shape_of(parts)
        if shape is None:
            return None
        scale = parts[index]
        takes_scale = scale is None or _takes(scale, weight)
    except (
        AttributeError,
        IndexError,
    ):  # a tensor of too few dimensions, or none where one belongs
        return f"has tensors that do not go together, for {matrix}"
    if not takes_scale:
        return f"dora_scale {tuple(scale.shape)} for {matrix}"
    return _compared(shape, matrix[: len(shape)])


def _compared(shape: Shape, wanted: Shape) -> str | None:
    return None if shape == wanted else f"{shape} for {wanted}"


def _takes(scale: Any, weight: torch.Tensor) -> bool:
    """Whether the host can scale rows or columns of the weight by this part of a DoRA."""
    if weight.ndim < 2:
        return False
    rows, columns = ([n, *(1,) * (weight.ndim - 2)] for n in weight.shape[:2])
    return list(scale.shape) in ([rows[0], 1, *rows[1:]], [1, *columns])


def _lora(parts: Parts) -> Shape | None:
    up, down, _, mid, _, reshape = parts[:6]
    if reshape is not None:
        return None
    rank = down.shape[0]
    if up.flatten(1).shape[1] != rank or mid is not None and mid.shape[:2] != (rank, rank):
        raise IndexError("the factors do not multiply")
    kernel = 1 if mid is None else math.prod(mid.shape[2:])
    return int(up.shape[0]), int(down.flatten(1).shape[1]) * kernel


def _loha(parts: Parts) -> Shape | None:
    w1_a, w1_b, _, w2_a, w2_b, core = parts[:6]
    if core is not None:
        return None
    if any(a.shape[1] != b.shape[0] for a, b in ((w1_a, w1_b), (w2_a, w2_b))):
        raise IndexError("the factors do not multiply")
    first, second = (_sides(a, b) for a, b in ((w1_a, w1_b), (w2_a, w2_b)))
    if first != second:
        raise IndexError("the two have other shapes")
    return first


def _lokr(parts: Parts) -> Shape | None:
    w1, w2, _, w1_a, w1_b, w2_a, w2_b, core = parts[:8]
    if core is not None:
        return None
    sides = []
    for whole, a, b in ((w1, w1_a, w1_b), (w2, w2_a, w2_b)):
        if whole is None and (a is None or b is None):
            raise IndexError("a factor is missing")
        sides.append(_sides(a, b) if whole is None else (len(whole), whole[0].numel()))
    (rows_1, columns_1), (rows_2, columns_2) = sides
    return rows_1 * rows_2, columns_1 * columns_2


def _sides(a: torch.Tensor, b: torch.Tensor) -> tuple[int, int]:
    return int(a.shape[0]), int(b.shape[1])


def _blocks(parts: Parts) -> Shape | None:
    return (math.prod(parts[0].shape[-3:-1]),)


# Where a kind keeps the scale of a DoRA among its parts, and what the shape of its change is: rows and columns of the
# flattened weight, as far as they are known. None where only the host can tell.
_SHAPES: dict[str, tuple[int, Callable[[Parts], Shape | None]]] = {
    "lora": (4, _lora),
    "loha": (7, _loha),
    "lokr": (8, _lokr),
    "oft": (3, _blocks),
    "boft": (3, _blocks),
}
