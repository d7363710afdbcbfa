# SPDX-License-Identifier: Apache-2.0
"""How strongly a file takes effect: on the MODEL, on the CLIP, and on single blocks of the MODEL."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...adapters.settings import pairs
from ...adapters.targets import matching

MOST = 100.0
_ROOT = "diffusion_model."


@dataclass(frozen=True)
class Strengths:
    """Factors of what a file changes.

    Attributes:
        model: Of the MODEL's part.
        clip: Of the text encoders' part.
        blocks: ``pattern=strength`` pairs in the block language, with semicolons between them; the last one that a
            layer matches multiplies ``model`` there.
    """

    model: float = 1.0
    clip: float = 1.0
    blocks: str = ""

    def __post_init__(self) -> None:
        pairs("strengths", self.blocks, float, -MOST, MOST)

    def by_layer(self, places: Iterable[Any]) -> dict[Any, float]:
        """The strength of every layer of the MODEL.

        Args:
            places: Names of weights, with an offset where it is a part of one, or names of blocks; those of text
                encoders are left out.

        Returns:
            Strengths by place.

        Raises:
            ValueError: A pattern matches none of the layers; lists near names.
        """
        names = {place: layer(place) for place in places}
        names = {place: name for place, name in names.items() if name}
        found = dict.fromkeys(names, self.model)
        for pattern, factor in pairs("strengths", self.blocks, float, -MOST, MOST):
            listed = sorted(set(names.values()))
            matched = matching(listed, pattern, "strengths", "that the file changes")
            found |= {p: self.model * factor for p, name in names.items() if name in matched}
        return found


WHOLE = Strengths()


def layer(place: Any) -> str:
    """``input_blocks.4.1.proj_in`` of ``diffusion_model.input_blocks.4.1.proj_in.weight``; empty of others."""
    key = str(place if isinstance(place, str) else place[0])
    if not key.startswith(_ROOT):
        return ""
    return key.removeprefix(_ROOT).removesuffix(".weight").removesuffix(".bias")
