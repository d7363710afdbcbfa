# SPDX-License-Identifier: Apache-2.0
"""Semantic guidance: pictures changed towards texts and away from them, only where the texts mean something."""

from .change import Part, edited
from .parts import ATTENTION, BOTH, DIFFERENCE, NONE, Edit

__all__ = ["ATTENTION", "BOTH", "DIFFERENCE", "NONE", "Edit", "Part", "edited"]
