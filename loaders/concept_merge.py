# SPDX-License-Identifier: Apache-2.0
"""Several concepts in one weight, in closed form (Kumari et al. 2023, section 3.2; arXiv 2212.04488).

min |(W - W0) C_reg^T|_F  such that  W C^T = V

C are the text encodings of the concepts' prompts, V what each concept's own weight makes of its rows, C_reg encodings
of captions whose outputs are to stay. With A = C_reg^T C_reg and D = C A^-1 it is W = W0 + (V - W0 C^T) (D C^T)^-1 D.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

RIDGE = 1e-6  # of A's mean eigenvalue: fewer captions than dimensions leave A singular
_SINGULAR = 1e-12


@dataclass(frozen=True, eq=False)
class Directions:
    """What all layers that read the same encodings share.

    Attributes:
        targets: C of each concept, ``[n_i, d]`` fp64.
        rows: D, ``[n, d]``.
        gram: D C^T, ``[n, n]``.
    """

    targets: tuple[torch.Tensor, ...]
    rows: torch.Tensor
    gram: torch.Tensor


def directions(
    targets: Sequence[torch.Tensor], regularisation: torch.Tensor, ridge: float = RIDGE
) -> Directions:
    """Find the directions in which weights may change.

    Args:
        targets: Encodings of each concept's prompt, ``[n_i, d]``.
        regularisation: Encodings of captions, ``[m, d]``.
        ridge: Added to A, as a multiple of its mean eigenvalue.

    Returns:
        The directions, where the encodings are.

    Raises:
        ValueError: There are too few encodings, or two concepts have equal ones.
    """
    wanted = tuple(target.to(torch.float64) for target in targets)
    captions = regularisation.to(torch.float64)
    stacked = torch.cat(wanted)
    size = captions.T @ captions
    size = size + ridge * size.diagonal().mean() * torch.eye(len(size)).to(size)
    factor, failed = torch.linalg.cholesky_ex(size)
    if int(failed):
        raise ValueError(
            f"{len(captions)} encodings of captions do not fix all {len(size)} dimensions: give more captions."
        )
    rows = torch.cholesky_solve(stacked.T, factor).T
    gram = rows @ stacked.T
    eigenvalues = torch.linalg.eigvalsh(_scaled(gram))
    if float(eigenvalues.min()) < _SINGULAR * float(eigenvalues.max()):
        raise ValueError(
            "Two of the concepts' prompts are encoded alike, so that no weight can tell them apart: give each concept "
            "a prompt with its own word."
        )
    return Directions(wanted, rows, gram)


def merge_concepts(
    weight: torch.Tensor, tuned: Sequence[torch.Tensor], found: Directions
) -> torch.Tensor:
    """Merge what several trainings made of one weight.

    Args:
        weight: W0, ``[out, d]``.
        tuned: The weight of each concept, ``[out, d]``, in the order of the directions' targets.
        found: What ``directions`` found.

    Returns:
        W, ``[out, d]`` fp64.
    """
    base = weight.to(torch.float64)
    pairs = zip(tuned, found.targets, strict=True)
    # V - W0 C^T, of the differences: no digits are lost where a training changed little
    missing = torch.cat([(own.to(base) - base) @ c.to(base).T for own, c in pairs], 1)
    scale = found.gram.diagonal().sqrt().to(base)
    factors = torch.linalg.solve(_scaled(found.gram).to(base), (missing / scale).T)
    return base + (factors.T / scale) @ found.rows.to(base)


def residuals(
    weight: torch.Tensor, tuned: Sequence[torch.Tensor], found: Directions
) -> list[float]:
    """How far a weight is from what each concept's own one makes of its encodings: relative, in Frobenius norms.

    Args:
        weight: The weight to look at, ``[out, d]``.
        tuned: The weight of each concept, ``[out, d]``.
        found: What ``directions`` found.

    Returns:
        A number for each concept.
    """
    far = []
    for own, target in zip(tuned, found.targets, strict=True):
        values = own.to(target) @ target.T
        away = weight.to(target) @ target.T - values
        far.append(float(away.norm() / values.norm().clamp(min=1e-300)))
    return far


def _scaled(gram: torch.Tensor) -> torch.Tensor:
    """The same with ones on the diagonal, for solving."""
    scale = gram.diagonal().sqrt()
    return gram / scale / scale[:, None]
