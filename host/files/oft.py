# SPDX-License-Identifier: Apache-2.0
"""OFT and BOFT files at any strength: W' = R^s W0, a rotation by s times the angle (see ``adapters.rotation``).

The host has s^2 (R - I) W0, leaves out an OFT's rescale, and at strength 1 is right. Of a BOFT every factor is turned
so, as kohya, LyCORIS and the host weigh each factor for itself.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch

from ...adapters import boft, oft, rotation

NAMES = ("oft", "boft")


def exact(patches: Mapping[Any, Any]) -> dict[Any, Any]:
    """Put our own patch in the place of each of the host's OFT and BOFT patches.

    Args:
        patches: What the host's loader made, by place.

    Returns:
        All patches.
    """
    return {
        place: _adapter()(patch.loaded_keys, tuple(patch.weights))
        if getattr(patch, "name", "") in NAMES
        else patch
        for place, patch in patches.items()
    }


def turned(
    weight: torch.Tensor,
    blocks: torch.Tensor,
    limit: float,
    rescale: torch.Tensor | None,
    strength: float,
) -> torch.Tensor:
    """R^s W0, and its rows times 1 + s (rescale - 1).

    Args:
        weight: W0 ``[out, ...]`` fp32.
        blocks: B ``[count, size, size]``, or ``[factors, count, size, size]`` of a BOFT.
        limit: What |Q| of all blocks is at most; 0 sets none.
        rescale: A factor for each row, ``[out, 1, ...]``.
        strength: s.

    Returns:
        ``[out, ...]`` fp32.
    """
    turns = rotation.power(rotation.skew(blocks.to(weight), limit), strength)
    change = oft.change if turns.ndim == 3 else boft.change
    columns = weight.flatten(1).mT
    made = (columns + change(turns, columns)).mT.reshape(weight.shape)
    if rescale is None:
        return made
    factors = 1 + strength * (rescale.to(weight).flatten() - 1)
    return made * factors.reshape(-1, *(1,) * (weight.ndim - 1))


@lru_cache(maxsize=1)
def _adapter() -> Any:
    """The patch's class: its base is the host's."""
    import comfy.weight_adapter

    class Turned(comfy.weight_adapter.WeightAdapterBase):  # type: ignore[misc, name-defined, unused-ignore]
        """A rotation; its parts are those of the host's: blocks, rescale, alpha and a DoRA's scale."""

        name = "graft_oft"

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
            """The turned weight, written into ``weight``, which may be a part of a larger one."""
            blocks, rescale, alpha = self.weights[:3]
            if strength:
                base = weight.to(torch.float32)
                made = turned(base, blocks, max(float(alpha or 0), 0.0), rescale, strength)
                weight.copy_(base + function(made - base))
            return weight

    return Turned
