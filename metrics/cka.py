# SPDX-License-Identifier: Apache-2.0
"""Linear centred kernel alignment: how alike two representations of the same samples are (Kornblith et al. 2019, eq. 5;
arXiv 1905.00414)."""

import torch


def linear_cka(one: torch.Tensor, other: torch.Tensor) -> float:
    """``|Y^T X|^2 / (|X^T X| |Y^T Y|)`` of centred columns, Frobenius norms, in fp64.

    It is 1 for representations that a rotation and one factor make equal, and 0 for unrelated ones; widths may differ.

    Args:
        one: X, ``[samples, features]``.
        other: Y, ``[samples, features]``, of the same samples in the same order.

    Returns:
        A number from 0 to 1; nan where one of them is the same for all samples.

    Raises:
        ValueError: They are of different numbers of samples, or of fewer than two.
    """
    if len(one) != len(other) or len(one) < 2:
        raise ValueError(
            f"CKA compares equal numbers of samples, two at least, not {len(one)} and {len(other)}."
        )
    x, y = (values.double() - values.double().mean(0) for values in (one, other))
    own = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float(torch.linalg.matrix_norm(y.T @ x).square() / own) if own > 0 else float("nan")
