# SPDX-License-Identifier: Apache-2.0
"""A low-rank change of one layer as a value: dW = (alpha / rank) up @ down, and the nearest one of another rank.

The nearest in the Frobenius norm is the truncated SVD (Eckart and Young 1936); it is found from the small factors,
without dW itself.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Pair:
    """One layer's part of a LoRA; a convolution's kernel is flattened behind its input channels.

    Attributes:
        down: ``[rank, in]``, fp32 on the CPU.
        up: ``[out, rank]``, likewise.
        alpha: The scale's numerator.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        """What ``up @ down`` is multiplied by."""
        return self.alpha / self.rank

    @property
    def is_nothing(self) -> bool:
        """Whether dW is 0, as it is where a LoRA was not trained."""
        return self.alpha == 0 or not (bool(self.up.any()) and bool(self.down.any()))

    def singular(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The singular value decomposition of dW, in fp64.

        Returns:
            ``u`` ``[out, n]``, ``s`` ``[n]`` from the largest down, ``vh`` ``[n, in]``, n at most the rank.
        """
        q_up, r_up = torch.linalg.qr(self.up.double())
        q_down, r_down = torch.linalg.qr(self.down.double().T)
        u, s, vh = torch.linalg.svd(self.scale * (r_up @ r_down.T), full_matrices=False)
        return q_up @ u, s, vh @ q_down.T


@dataclass(frozen=True)
class Kept:
    """How much of a change a layer began with, as sums of squared singular values.

    Attributes:
        energy: Of what was kept.
        whole: Of all.
        rank: From which the layer would keep all of it.
    """

    energy: float
    whole: float
    rank: int

    @property
    def share(self) -> float:
        """``energy / whole``, 1 where there is nothing."""
        return self.energy / self.whole if self.whole else 1.0


def nearest(pair: Pair, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor, Kept]:
    """The nearest change of a rank, its factors of equal norm.

    Args:
        pair: The change.
        rank: The wished inner dimension.
        scale: What the product of the factors will be multiplied by; positive.

    Returns:
        ``down`` ``[n, in]`` and ``up`` ``[out, n]`` in fp64, n at most ``rank``, and how much of it they keep.
    """
    u, s, vh = pair.singular()
    squares = s.square()
    full = int((s > s.max() * torch.finfo(torch.float32).eps).sum()) if len(s) else 0
    n = min(rank, full)
    root = (s[:n] / scale).sqrt()
    kept = Kept(float(squares[:n].sum()), float(squares.sum()), full)
    return root[:, None] * vh[:n], u[:, :n] * root, kept
