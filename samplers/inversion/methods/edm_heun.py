# SPDX-License-Identifier: Apache-2.0
"""The probability flow ODE upward by Heun's steps (Karras et al. 2022, Algorithm 1; arXiv 2206.00364)."""

from dataclasses import dataclass
from typing import ClassVar

from ..parts import INVERSIONS
from ._solving import Solving


@INVERSIONS.register("edm-heun")
@dataclass(frozen=True)
class InvertHeun(Solving):
    """x with S(x) = x', S a step of edm-heun down."""

    sampler: ClassVar[str] = "edm-heun"
