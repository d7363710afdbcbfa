# SPDX-License-Identifier: Apache-2.0
"""Where the factors of a LoRA begin, by the names that PEFT has for it.

``kaiming`` (the default of kohya and PEFT), ``gaussian`` (diffusers' scripts) and ``orthogonal`` change nothing at the
start. ``pissa`` (Meng et al. 2024, eq. 3; arXiv 2404.02948) and ``olora`` (arXiv 2406.01775) begin with a part of the
weight itself, which is then taken off the weight.
"""

import math

import torch

KAIMING, GAUSSIAN, ORTHOGONAL, PISSA, OLORA = "kaiming", "gaussian", "orthogonal", "pissa", "olora"
INITS = (KAIMING, GAUSSIAN, ORTHOGONAL, PISSA, OLORA)
OF_THE_WEIGHT = (PISSA, OLORA)


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """U(-1, 1) / sqrt(fan_in): kaiming_uniform with a = sqrt(5), as kohya and PEFT have it."""
    bound = 1.0 / math.sqrt(math.prod(shape[1:]))
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound


def gaussian(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Normal, of the standard deviation 1 / rank."""
    return torch.randn(shape, generator=generator) / shape[0]


def orthogonal(
    rows: int, rank: int, columns: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors that are not 0 but whose product is, as their inner rows are orthogonal.

    Args:
        rows: Of the weight.
        rank: Inner dimension; even.
        columns: Of the weight.
        generator: Draws them.

    Returns:
        ``down`` ``[rank, columns]`` and ``up`` ``[rows, rank]``.

    Raises:
        ValueError: The rank is odd.
    """
    if rank % 2:
        raise ValueError(f"init=orthogonal needs an even rank, and this layer has {rank}.")
    q, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator))
    down = q[0::2].T @ torch.randn(rank // 2, columns, generator=generator) / 10
    up = torch.randn(rows, rank // 2, generator=generator) @ q[1::2] / 10
    return down, up


def of_the_weight(
    init: str, weight: torch.Tensor, rank: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A part of a weight as a LoRA.

    Args:
        init: ``pissa``: the largest singular values, in equal shares. ``olora``: the first directions of a QR.
        weight: ``[out, in]`` fp32.
        rank: Inner dimension.
        scale: Of the LoRA.

    Returns:
        ``down`` ``[n, in]`` and ``up`` ``[out, n]``, n at most the rank and the weight's sides.
    """
    if init == OLORA:
        q, r = torch.linalg.qr(weight)
        return r[:rank], q[:, :rank]
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root
