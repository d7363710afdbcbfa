# SPDX-License-Identifier: Apache-2.0
"""DDIM inversion (Song et al. 2020, section 4.3; arXiv 2010.02502): the probability flow ODE upward, by Euler steps."""

from dataclasses import dataclass
from typing import ClassVar

from ..parts import INVERSIONS
from ._solving import Solving


@INVERSIONS.register("ddim")
@dataclass(frozen=True)
class InvertDDIM(Solving):
    """x with S(x) = x', S a step of ddim down."""

    sampler: ClassVar[str] = "ddim"
