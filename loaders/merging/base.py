# SPDX-License-Identifier: Apache-2.0
"""What every way of merging offers: one layer's changes and their weights become one change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from ...adapters.pair import Kept, Pair
from ...registry import Registry, check_limits, option

_DENSITY = "Share of the values of every change that is kept, of each tensor."
SIGNS_ELECTED = "How signs are elected: by the sum of the values, or by their number."
SIGNS = ("total", "frequency")
_ROUNDING = 1e-12

Change = Pair | torch.Tensor
Combine = Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor]


class Mode(Protocol):
    """A way of merging: a frozen dataclass registered in ``MODES``."""

    takes_any: ClassVar[bool]

    def merge(
        self, changes: Sequence[Change], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Pair, Kept | None]:
        """Merge the changes of one layer.

        Args:
            changes: Of the adapters that have the layer: pairs, or, where ``takes_any``, dW ``[out, in * kernel]``.
            weights: What each counts.
            generator: For what is drawn, on the CPU.

        Returns:
            The merged change, its alpha equal to its rank, and how much was kept where it was cut to a rank.

        Raises:
            ValueError: They cannot be merged in this way.
        """


MODES: Registry[Mode] = Registry("merge mode")


@dataclass(frozen=True)
class Reranked:
    """Settings of ways that end in a singular value decomposition."""

    rank: int = option(0, "Rank of the result; 0: the largest of the given ones.", min=0, max=4096)
    energy: float = option(
        1.0,
        "Share of the sum of squared singular values that is kept: the rank is as small as this allows. 1: only the "
        "rank decides.",
        min=0.01,
        max=1.0,
    )

    def __post_init__(self) -> None:
        check_limits(self)

    def cut(
        self, u: torch.Tensor, s: torch.Tensor, vh: torch.Tensor, most: int
    ) -> tuple[Pair, Kept]:
        """The nearest change of the wished rank.

        Args:
            u: ``[out, n]``.
            s: ``[n]``, from the largest down.
            vh: ``[n, in]``.
            most: The rank where none is wished; 0 for all that is there.

        Returns:
            The change with ``up = u s`` and ``down = vh``, and what it keeps.
        """
        squares = s.double().square()
        whole = float(squares.sum())
        noise = torch.finfo(torch.float32).eps * float(s.max()) if len(s) else 0.0
        full = int((s > noise).sum())
        count = min(self.rank or most or full, full)
        if self.energy < 1 and whole:
            share = squares.cumsum(0) / whole
            count = min(count, int((share < self.energy - _ROUNDING).sum()) + 1)
        n = max(1, count)
        down, up = vh[:n].float().cpu(), (u[:, :n] * s[:n]).float().cpu()
        pair = Pair(down.contiguous(), up.contiguous(), float(n))
        return pair, Kept(float(squares[:count].sum()), whole, full)


@dataclass(frozen=True)
class Sparse:
    """Ways that leave values out: of each factor, or of dW where they are ``Reranked``, too."""

    takes_any: ClassVar[bool] = False
    density: float = option(0.5, _DENSITY, min=0.001, max=1.0)

    def __post_init__(self) -> None:
        check_limits(self)

    def combine(self, generator: torch.Generator) -> Combine:
        """What makes one tensor of several and their weights.

        Args:
            generator: For what is drawn.

        Returns:
            A function of tensors of one shape and weights ``[n]``.
        """
        raise NotImplementedError

    def merge(
        self, changes: Sequence[Change], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Pair, Kept | None]:
        """Merge the factors, or dW and cut it; see ``Mode``."""
        combine = self.combine(generator)
        if isinstance(self, Reranked):
            return by_svd(combine, changes, weights, self)
        return by_factors(combine, changes, weights)


def dense(change: Change) -> torch.Tensor:
    """dW of one layer, ``[out, in * kernel]`` in fp32."""
    return (change.up @ change.down) * change.scale if isinstance(change, Pair) else change.float()


def pairs_of(changes: Sequence[Change]) -> list[Pair]:
    """The changes, all of which have to be of low rank.

    Args:
        changes: Of one layer.

    Returns:
        The same.

    Raises:
        ValueError: One is dW itself.
    """
    pairs = [change for change in changes if isinstance(change, Pair)]
    if len(pairs) < len(changes):
        raise ValueError("Only plain LoRAs can be merged in this way; choose the mode 'sum'.")
    return pairs


def by_factors(
    combine: Combine, changes: Sequence[Change], weights: Sequence[float]
) -> tuple[Pair, None]:
    """Merge the two factors apart, each with the root of the weight: PEFT's modes without ``svd``.

    Args:
        combine: Makes one tensor of several and their weights.
        changes: Pairs of one rank.
        weights: What each counts; its sign goes to ``down``.

    Returns:
        The merged change; nothing is cut.

    Raises:
        ValueError: The ranks differ.
    """
    pairs = pairs_of(changes)
    ranks = sorted({pair.rank for pair in pairs})
    if len(ranks) > 1:
        raise ValueError(
            f"The ranks are {', '.join(map(str, ranks))}, and this mode merges the factors of LoRAs of one rank: "
            "choose 'sum', 'cat' or a mode that ends in 'svd'."
        )
    scaled = torch.tensor(
        [weight * pair.scale for weight, pair in zip(weights, pairs, strict=True)]
    )
    roots = scaled.abs().sqrt()
    signs = torch.where(scaled >= 0, 1.0, -1.0)
    down = combine([pair.down for pair in pairs], roots * signs)
    up = combine([pair.up for pair in pairs], roots)
    return Pair(down, up, float(ranks[0])), None


def by_svd(
    combine: Combine, changes: Sequence[Change], weights: Sequence[float], settings: Reranked
) -> tuple[Pair, Kept]:
    """Merge dW itself and cut it to a rank: PEFT's modes that end in ``svd``.

    Args:
        combine: Makes one tensor of several and their weights.
        changes: Pairs of any ranks.
        weights: What each counts.
        settings: The rank.

    Returns:
        The merged change, and what it keeps.
    """
    pairs = pairs_of(changes)
    merged = combine([dense(pair) for pair in pairs], torch.tensor(list(weights)).float())
    u, s, vh = torch.linalg.svd(merged, full_matrices=False)
    return settings.cut(u, s, vh, max(pair.rank for pair in pairs))
