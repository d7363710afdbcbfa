# SPDX-License-Identifier: Apache-2.0
"""The same strength at every step."""

from dataclasses import dataclass

from ..parts import COURSES


@COURSES.register("constant")
@dataclass(frozen=True)
class Constant:
    """The same share at every step."""

    def __call__(self, progress: float) -> float:
        """The share of the strength."""
        return 1.0
