# SPDX-License-Identifier: Apache-2.0
"""What the layers of a file change without the model: dW, its size, how two of them differ, and dW of another rank.

LoRA, LoHa, LoKr and full differences make a dW of their own; OFT, GLoRA and the magnitudes of a DoRA need the weight.
Sizes of LoRAs are found from the small factors: |B A|^2 = tr(B^T B A A^T), <B A, D C> = tr((B^T D) (C A^T)).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...adapters.pair import Kept, Pair
from ..roles import ALPHA, DOWN, MAGNITUDE, MID, UP
from .content import Roles, kind, pair

_LOW_RANK = ("LoRA", "DoRA")


@dataclass(frozen=True)
class Wish:
    """What a layer is reduced to: ``rank`` where it is above 0, else the least rank that keeps ``energy``."""

    rank: int = 0
    energy: float = 1.0


def has_change(roles: Mapping[str, torch.Tensor]) -> bool:
    """Whether dW is known without the weight."""
    what = kind(roles)
    if what in _LOW_RANK:
        return True
    if what == "LoHa":
        return "hada_t1" not in roles
    if what == "LoKr":
        return "lokr_t2" not in roles
    return "diff" in roles and roles["diff"].ndim > 1


def change(name: str, roles: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """dW of a layer of which ``has_change`` holds; of a DoRA, that of V.

    Args:
        name: The layer, for messages.
        roles: Its tensors.

    Returns:
        ``[out, in * kernel]`` fp32.

    Raises:
        ValueError: Its tensors do not go together.
    """
    what = kind(roles)
    if what in _LOW_RANK:
        low = pair(name, roles)
        return low.scale * (low.up @ low.down)
    flat = {role: tensor.detach().to("cpu", torch.float32) for role, tensor in roles.items()}
    try:
        return {"LoHa": _loha, "LoKr": _lokr, "full": _diff}[what](flat)
    except (RuntimeError, KeyError) as error:
        shapes = ", ".join(f"{role} {list(tensor.shape)}" for role, tensor in roles.items())
        raise ValueError(
            f"{name}: the tensors of its {what} do not go together: {shapes}."
        ) from error


def size(name: str, roles: Mapping[str, torch.Tensor]) -> float:
    """|dW| of a layer, Frobenius norm; nan where it is not known without the weight."""
    if not has_change(roles):
        return math.nan
    if kind(roles) in _LOW_RANK:
        low = pair(name, roles)
        return math.sqrt(max(_product(low, low), 0.0))
    return float(change(name, roles).double().norm())


def compared(
    name: str, one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]
) -> tuple[float, float, float]:
    """Squared sizes of two changes of one layer, and their inner product.

    Args:
        name: The layer, for messages.
        one: Tensors of the first, of which ``has_change`` holds.
        other: Of the second, likewise.

    Returns:
        |dW1|^2, |dW2|^2 and <dW1, dW2>.

    Raises:
        ValueError: They are of layers of another shape.
    """
    if {kind(one), kind(other)} <= set(_LOW_RANK):
        first, second = pair(name, one), pair(name, other)
        shapes = [(p.up.shape[0], p.down.shape[1]) for p in (first, second)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name} is {shapes[0]} in one and {shapes[1]} in the other.")
        return _product(first, first), _product(second, second), _product(first, second)
    a, b = change(name, one).double(), change(name, other).double()
    if a.shape != b.shape:
        raise ValueError(f"{name} is {tuple(a.shape)} in one and {tuple(b.shape)} in the other.")
    return float(a.square().sum()), float(b.square().sum()), float((a * b).sum())


def reduced(
    name: str, roles: Roles, wish: Wish, kernel: tuple[int, ...] = ()
) -> tuple[Roles, Kept]:
    """A layer as a LoRA of another rank, the nearest one; a DoRA keeps its magnitudes.

    Args:
        name: The layer, for messages.
        roles: Its tensors, of which ``has_change`` holds.
        wish: The rank, or how much is to be kept.
        kernel: Sides of a convolution's kernel, where the tensors do not have them.

    Returns:
        The tensors, of the kind that they had, and what was kept.

    Raises:
        ValueError: The tensors do not go together.
    """
    if kind(roles) in _LOW_RANK:
        low, like = pair(name, roles), roles[DOWN]
        sides = tuple((roles[MID] if MID in roles else like).shape[2:])
    else:
        whole = change(name, roles)
        low, like = full_pair(whole), next(iter(roles.values()))
        sides = tuple(roles["diff"].shape[2:]) if "diff" in roles else kernel
    made, kept = as_lora(low, wish, sides)
    made = {
        role: tensor.to(like.dtype) if role != ALPHA else tensor for role, tensor in made.items()
    }
    rest = {r: t for r, t in roles.items() if r in (MAGNITUDE, "diff_b", "b_norm")}
    return made | rest, kept


def full_pair(whole: torch.Tensor) -> Pair:
    """A change ``[out, n]`` as factors that multiply to it, the narrower an identity."""
    rows, columns = whole.shape
    if rows <= columns:
        return Pair(whole, torch.eye(rows), float(rows))
    return Pair(torch.eye(columns), whole, float(columns))


def as_lora(low: Pair, wish: Wish, kernel: tuple[int, ...] = ()) -> tuple[Roles, Kept]:
    """The nearest LoRA of a change, fp32, alpha its rank; rank 1 of zeros for no change."""
    return from_singular(*low.singular(), wish, kernel)


def from_singular(
    u: torch.Tensor, s: torch.Tensor, vh: torch.Tensor, wish: Wish, kernel: tuple[int, ...] = ()
) -> tuple[Roles, Kept]:
    """The nearest LoRA of a change given by its singular value decomposition (Eckart and Young 1936).

    Args:
        u: ``[out, n]``.
        s: ``[n]`` from the largest down.
        vh: ``[n, in * kernel]``.
        wish: The rank, or how much is to be kept.
        kernel: Sides of a convolution's kernel.

    Returns:
        Its tensors in fp32, the factors of equal norm and alpha the rank; and what was kept.
    """
    squares = s.double().square()
    full = int((s > s.max() * torch.finfo(torch.float32).eps).sum()) if len(s) else 0
    n = max(min(wish.rank or _enough(squares, wish.energy), full), 1)
    root = s[:n].sqrt()
    ones = (1,) * len(kernel)
    made = {
        UP: (u[:, :n] * root).float().reshape(-1, n, *ones).contiguous(),
        DOWN: (root[:, None] * vh[:n]).float().reshape(n, -1, *kernel).contiguous(),
        ALPHA: torch.tensor(float(n)),
    }
    return made, Kept(float(squares[:n].sum()), float(squares.sum()), full)


def _enough(squares: torch.Tensor, energy: float) -> int:
    """The least rank that keeps a share of the sum of squares."""
    total = squares.sum()
    if not total:
        return 1
    share = squares.cumsum(0) / total
    return int((share < min(energy, 1.0) - 1e-12).sum()) + 1


def _product(one: Pair, other: Pair) -> float:
    inner = (one.up.double().T @ other.up.double()) * (one.down.double() @ other.down.double().T)
    return float(inner.sum()) * one.scale * other.scale


def _loha(roles: Roles) -> torch.Tensor:
    first = roles["hada_w1_a"] @ roles["hada_w1_b"]
    second = roles["hada_w2_a"] @ roles["hada_w2_b"]
    rank = roles["hada_w1_b"].shape[0]
    return first * second * (float(roles[ALPHA]) / rank if ALPHA in roles else 1.0)


def _lokr(roles: Roles) -> torch.Tensor:
    ranks = [len(roles[f"lokr_{w}_b"]) for w in ("w1", "w2") if f"lokr_{w}_b" in roles]
    first, second = (
        roles[f"lokr_{w}"]
        if f"lokr_{w}" in roles
        else roles[f"lokr_{w}_a"] @ roles[f"lokr_{w}_b"].flatten(1)
        for w in ("w1", "w2")
    )
    scale = float(roles[ALPHA]) / ranks[-1] if ranks and ALPHA in roles else 1.0
    first = first.reshape(*first.shape, *(1,) * (second.ndim - first.ndim))
    return scale * torch.kron(first.contiguous(), second.contiguous()).flatten(1)


def _diff(roles: Roles) -> torch.Tensor:
    return roles["diff"].flatten(1)
