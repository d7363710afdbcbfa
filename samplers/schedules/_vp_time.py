# SPDX-License-Identifier: Apache-2.0
"""The variance-preserving course: sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), and back."""

import math

import torch


def sigma_at(t: torch.Tensor, beta_d: float, beta_min: float) -> torch.Tensor:
    """Levels ``[n]`` at times ``[n]``."""
    return torch.expm1(0.5 * beta_d * t**2 + beta_min * t).sqrt()


def time_at(sigma: float, beta_d: float, beta_min: float) -> float:
    """The time of a level: the root of beta_d t^2 / 2 + beta_min t = ln(1 + sigma^2) that is above 0."""
    c = math.log1p(sigma**2)
    return 2 * c / (beta_min + math.sqrt(beta_min**2 + 2 * beta_d * c))
