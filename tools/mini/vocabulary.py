# SPDX-License-Identifier: Apache-2.0
"""What can be drawn and named: shapes, colours, textures and sizes.

The first `BASE_SHAPES` shapes and `BASE_TEXTURES` textures belong to the base model's training set. The ones after
them are concepts: the base model never sees them, so that learning them later can be measured.
"""

from __future__ import annotations

SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "cross",
    "ring",
    "diamond",
    "arrow",
    "crescent",
    "hourglass",
)
BASE_SHAPES = 8
NO_SHAPE = "none"

COLOURS = {
    "red": (0.86, 0.12, 0.13),
    "green": (0.13, 0.62, 0.20),
    "blue": (0.13, 0.28, 0.86),
    "yellow": (0.97, 0.88, 0.12),
    "purple": (0.55, 0.16, 0.70),
    "orange": (0.97, 0.52, 0.08),
    "white": (0.95, 0.95, 0.95),
    "black": (0.07, 0.07, 0.07),
}
COLOUR_NAMES = tuple(COLOURS)

TEXTURES = ("plain", "striped", "dotted", "checkered", "zigzag", "ripple")
BASE_TEXTURES = 4

SIZES = ("small", "medium", "large")
RADII = (12.5, 18.0, 25.0)

SYNONYMS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
    "diamond": ("diamond", "rhombus"),
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered", "checked"),
    "small": ("small", "little", "tiny"),
    "medium": ("medium",),
    "large": ("large", "big", "huge"),
}
