# SPDX-License-Identifier: Apache-2.0
"""Inversion: a picture as the way of a sampler to it, so that the way can be gone again, and changed."""

from . import methods
from .parts import INVERSIONS, Inversion, Method
from .replay import replay

INVERSIONS.discover(methods.__path__, methods.__name__)

__all__ = ["INVERSIONS", "Inversion", "Method", "replay"]
