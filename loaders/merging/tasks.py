# SPDX-License-Identifier: Apache-2.0
"""Several tensors as one: pruned by size or by chance, elected signs (Yadav et al. 2023; Yu et al. 2023)."""

import torch


def weighted(tensors: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """The sum of ``tensors`` of one shape, each times its weight ``[n]``."""
    stacked = torch.stack(tensors)
    return (stacked * _shaped(weights, stacked)).sum(dim=0)


def largest(tensor: torch.Tensor, density: float) -> torch.Tensor:
    """The largest values of a tensor, 0 for the others.

    Args:
        tensor: Of any shape.
        density: The share that is kept, rounded down.

    Returns:
        A tensor of the same shape.
    """
    if density >= 1:
        return tensor
    flat = tensor.reshape(-1)
    kept = flat.abs().topk(int(density * flat.numel())).indices
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).reshape(tensor.shape)


def by_chance(
    tensor: torch.Tensor, density: float, generator: torch.Generator | None
) -> torch.Tensor:
    """Each value with probability ``density``, divided by it, so that the mean stays.

    Args:
        tensor: Of any shape.
        density: The probability.
        generator: On the CPU.

    Returns:
        A tensor of the same shape.
    """
    if density >= 1:
        return tensor
    kept = torch.bernoulli(torch.full(tensor.shape, density), generator=generator)
    return tensor * kept.to(tensor) / density


def disjoint_mean(
    tensors: list[torch.Tensor], weights: torch.Tensor, signs: str = "total"
) -> torch.Tensor:
    """Of every value, the mean of those whose sign is the elected one (TIES).

    Args:
        tensors: Pruned, of one shape.
        weights: ``[n]``, of the values and not of the votes.
        signs: ``total``: the sign of the sum is elected; ``frequency``: that of most of them. A draw is positive.

    Returns:
        A tensor of the same shape.
    """
    stacked = torch.stack(tensors)
    votes = stacked if signs == "total" else stacked.sign()
    elected = torch.where(votes.sum(dim=0) >= 0, 1.0, -1.0)
    agrees = stacked.sign() == elected
    summed = (stacked * _shaped(weights, stacked) * agrees).sum(dim=0)
    return summed / agrees.sum(dim=0).clamp(min=1)


def _shaped(weights: torch.Tensor, stacked: torch.Tensor) -> torch.Tensor:
    return weights.to(stacked).reshape(-1, *(1,) * (stacked.ndim - 1))
