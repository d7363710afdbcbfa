# SPDX-License-Identifier: Apache-2.0
"""DoRA files by the defining formula: W' = m V / |V|, V = W0 + dW (Liu et al. 2024, eq. 5; arXiv 2402.09353).

The host divides the rows of V by |W0|, up to the version of today. dW may be of any kind that the host reads.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch

from . import stock_form

FACT = "graft.dora_scale"
# Where the host's adapters keep the scale among their parts.
_INDEX = {"lora": 4, "loha": 7, "lokr": 8, "glora": 5, "graft_oft": 3}


def exact(patches: Mapping[Any, Any], metadata: Mapping[str, str]) -> dict[Any, Any]:
    """Put our own patch in the place of each of the host's that has a magnitude.

    Args:
        patches: What the host's loader made, by place.
        metadata: The file's; those that this pack wrote for a host that divides by |W0| say so.

    Returns:
        All patches. Those of a file that is written for this very host stay the host's own.
    """
    by_base = metadata.get(FACT, "") == stock_form.BY_BASE
    if by_base and stock_form.divides_by_base():
        return dict(patches)
    return {place: _exact(patch, by_base) for place, patch in patches.items()}


def _exact(patch: Any, by_base: bool) -> Any:
    index = _INDEX.get(getattr(patch, "name", ""))
    if index is None or len(patch.weights) <= index or patch.weights[index] is None:
        return patch
    parts = tuple(patch.weights)
    plain = type(patch)(patch.loaded_keys, (*parts[:index], None, *parts[index + 1 :]))
    return _adapter()(patch.loaded_keys, (plain, parts[index], by_base))


def decomposed(
    weight: torch.Tensor, whole: torch.Tensor, scale: torch.Tensor, by_base: bool
) -> torch.Tensor:
    """m V / |V|.

    Args:
        weight: W0 ``[out, in, *kernel]``.
        whole: V, likewise.
        scale: m ``[out, 1, ...]``, or ``[1, in, 1, ...]`` for one of the columns.
        by_base: Whether the scale of rows is written to be divided by |W0|.

    Returns:
        ``[out, in, *kernel]`` fp32.
    """
    is_rows = scale.shape[0] == weight.shape[0] and scale.numel() == weight.shape[0]
    counted = weight if by_base and is_rows else whole
    rest = [axis for axis in range(counted.ndim) if axis != (0 if is_rows else 1)]
    norms = torch.linalg.vector_norm(counted, dim=rest, keepdim=True)
    if by_base and is_rows:
        norms = norms + torch.finfo(torch.float32).eps
    # A row of zeros has no direction, and stays one.
    return whole * torch.where(norms > 0, scale.to(whole) / norms.clamp(min=1e-30), 1.0)


@lru_cache(maxsize=1)
def _adapter() -> Any:
    """The patch's class: its base is the host's."""
    import comfy.weight_adapter

    class Decomposed(comfy.weight_adapter.WeightAdapterBase):  # type: ignore[misc, name-defined, unused-ignore]
        """A change of any kind, and the size of its rows or columns."""

        name = "graft_dora"

        def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]) -> None:
            self.loaded_keys, self.weights = loaded_keys, weights

        def calculate_weight(
            self,
            weight: torch.Tensor,
            key: str,
            strength: float,
            strength_model: float,
            offset: Any,
            function: Callable[[torch.Tensor], torch.Tensor],
            intermediate_dtype: torch.dtype = torch.float32,
            original_weight: Any = None,
        ) -> torch.Tensor:
            """W0 + strength (W' - W0), written into ``weight``, which may be a part of a larger one."""
            inner, scale, by_base = self.weights
            base = weight.to(torch.float32)
            whole = inner.calculate_weight(
                base.clone(), key, 1.0, 1.0, offset, function, torch.float32, original_weight
            )
            made = decomposed(base, whole, scale.to(base), by_base)
            weight.copy_(made if strength == 1.0 else base + strength * (made - base))
            return weight

    return Decomposed
