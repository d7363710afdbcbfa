# SPDX-License-Identifier: Apache-2.0
"""Rotations of OFT and BOFT at any strength: R^s, which turns by s times the angles of R.

R = (I + Q) (I - Q)^-1 (Cayley). Where Q has the eigenvalues i q, R has e^(2 i arctan q), and R^s has e^(2 i s arctan q)
in the same planes. So every strength is a rotation, -1 undoes 1, and a half twice is the whole. kohya and LyCORIS have
I + s (R - I) instead, which is the same at 0 and 1; between them a vector v becomes shorter, and beyond longer:
|v|^2 - s (1 - s) |(R - I) v|^2.
"""

import torch


def skew(blocks: torch.Tensor, limit: float) -> torch.Tensor:
    """Q = B - B^T.

    Args:
        blocks: B ``[..., size, size]``.
        limit: What |Q| of all of them is at most; 0 sets none.

    Returns:
        ``[..., size, size]``.
    """
    q = blocks - blocks.mT
    if not limit:
        return q
    norm = torch.linalg.vector_norm(q) + 1e-8
    return q * (limit / norm).clamp(max=1.0)


def cayley(q: torch.Tensor) -> torch.Tensor:
    """``R - I = 2 Q (I - Q)^-1``, with no difference of near numbers.

    Args:
        q: Q ``[..., size, size]``.

    Returns:
        ``[..., size, size]``.
    """
    unit = torch.eye(q.shape[-1], device=q.device, dtype=q.dtype)
    turned: torch.Tensor = torch.linalg.solve(unit - q, 2 * q, left=False)
    return turned


def power(q: torch.Tensor, strength: float) -> torch.Tensor:
    """``R^strength - I``, fp32.

    Args:
        q: Q ``[..., size, size]`` of R.
        strength: Any.

    Returns:
        ``[..., size, size]`` on the device of ``q``.
    """
    if strength == 1.0:
        return cayley(q.float())
    # In fp64 and on the CPU: not every device has eigenvectors of complex matrices.
    values, vectors = torch.linalg.eigh(1j * q.detach().to("cpu", torch.float64))  # q of Q = i q
    angles = -2.0 * strength * torch.arctan(values)
    turned = (vectors * torch.expm1(1j * angles).unsqueeze(-2)) @ vectors.mH
    return turned.real.to(q.device, torch.float32)
