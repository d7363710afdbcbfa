# SPDX-License-Identifier: Apache-2.0
"""Studies of what was trained, as a picture and in words."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from ..drawing.heat_map import Table, heat_map
from ..model.block_outputs import Alike, alike

_LISTED = 5


def compare_blocks(
    model: Any,
    trained: Any,
    positive: Sequence[Any],
    latent: torch.Tensor,
    levels: int,
    seed: int,
    node_id: str | None = None,
) -> tuple[torch.Tensor, str]:
    """Where a trained MODEL differs from the one before: linear CKA of what each block puts out.

    Args:
        model: The MODEL before.
        trained: The MODEL after.
        positive: CONDITIONING.
        latent: ``[B, C, ...]`` as on a LATENT wire.
        levels: How many noise levels.
        seed: Of the noise.
        node_id: Where progress is shown.

    Returns:
        IMAGE ``[1, height, width, 3]``, and the blocks that changed most in words.
    """
    from comfy.utils import ProgressBar

    bar = ProgressBar(2 * levels, node_id=node_id)

    def tell(done: int, total: int) -> None:
        bar.update_absolute(done, total)

    with torch.inference_mode():
        found = alike(model, trained, positive, latent, levels, seed, tell)
    finite = [value for row in found.values for value in row if math.isfinite(value)]
    lowest = math.floor(10 * min(finite, default=0.0)) / 10
    table = Table(
        "linear CKA before and after training",
        found.blocks,
        [f"{level:.3g}" for level in found.levels],
        found.values,
        min(lowest, 0.9),
        1.0,
        "block / sigma",
    )
    return heat_map(table), _described(found)


def _described(found: Alike) -> str:
    means = {
        block: fmean(finite)
        for block, row in zip(found.blocks, found.values, strict=True)
        if (finite := [value for value in row if math.isfinite(value)])
    }
    least = sorted(means, key=lambda block: means[block])[:_LISTED]
    return "\n".join(
        [
            f"linear CKA over {len(found.levels)} noise levels, 1 where nothing but a rotation changed",
            f"all {len(means)} blocks: {fmean(means.values()):.4f}" if means else "no block varies",
            *(f"{block}: {means[block]:.4f}" for block in least),
        ]
    )
