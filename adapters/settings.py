# SPDX-License-Identifier: Apache-2.0
"""What networks of low rank have in common: rank and alpha, which may differ from layer to layer, and dropout."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from ..registry import check_limits, option
from .form import Form
from .targets import matching, targets

MAX_RANK = 4096
_FIRST = ("rank", "alpha", "blocks")
N = TypeVar("N", bound="Settings")


class Settings:
    """Settings of a network; those that have their defaults are not shown, so that a new one changes no file's text."""

    blocks: str

    def __repr__(self) -> str:
        """The settings that tell one network from another."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        said = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields
            if field.name in _FIRST or getattr(self, field.name) != field.default
        ]
        return f"{type(self).__name__}({', '.join(said)})"

    def targets(self, root: nn.Module) -> tuple[str, ...]:
        """Names of the linear and convolution modules that ``blocks`` selects.

        Raises:
            ValueError: It selects none.
        """
        return targets(root, self.blocks)

    def plan(self: N, names: Sequence[str]) -> Mapping[str, N]:
        """The settings of every layer by its name.

        Raises:
            ValueError: A setting is for layers that there are not.
        """
        return dict.fromkeys(names, self)


@dataclass(frozen=True, repr=False)
class Ranked(Settings):
    """Settings of a network whose layers have a rank."""

    rank: int = option(
        16, "Inner dimension: larger learns more and makes a larger file.", min=1, max=MAX_RANK
    )
    alpha: float = option(
        0.0,
        "Scale numerator: dW is multiplied by alpha / rank. 0 means the rank.",
        min=0.0,
        max=4096.0,
    )
    blocks: str = option(
        "attention",
        "Which layers are trained: presets (all, transformer, attention, cross-attention, cross-attention kv, b-lora, "
        "b-lora content, b-lora style) and patterns.",
    )
    module_dropout: float = option(
        0.0,
        "Share of the pictures for which a layer is left out, anew for every step and layer; 0.1 to 0.3 where few "
        "pictures are learned by heart.",
        min=0.0,
        max=0.99,
    )
    conv_rank: int = option(
        0, "Rank of convolutions larger than 1x1; 0 means rank.", min=0, max=MAX_RANK
    )
    conv_alpha: float = option(
        0.0, "Their alpha; 0 keeps alpha / rank as it is.", min=0.0, max=4096.0
    )
    ranks: str = option(
        "",
        "Ranks of some layers, as pattern=rank with semicolons between them: output_blocks.*=32; to_v=8. The last one "
        "that a layer matches counts. alpha / rank stays as it is.",
    )
    alphas: str = option("", "Alphas of some layers, written likewise: output_blocks.*=16.")

    def __post_init__(self) -> None:
        check_limits(self)
        pairs("ranks", self.ranks, int, 1, MAX_RANK)
        pairs("alphas", self.alphas, float, 0.0, 4096.0)

    def plan(self: "R", names: Sequence[str]) -> Mapping[str, "R"]:
        """The settings of every layer by its name, with the rank and alpha that the patterns give it.

        Args:
            names: Names of all trained layers.

        Raises:
            ValueError: A pattern matches none of them; lists near names.
        """
        own: dict[str, dict[str, Any]] = {name: {} for name in names}
        for pattern, rank in pairs("ranks", self.ranks, int, 1, MAX_RANK):
            for name in matching(names, pattern, "ranks"):
                alpha = self.alpha * rank / self.rank
                own[name] = {"rank": rank, "alpha": alpha, "conv_rank": 0, "conv_alpha": 0.0}
        for pattern, alpha in pairs("alphas", self.alphas, float, 0.0, 4096.0):
            for name in matching(names, pattern, "alphas"):
                own[name] |= {"alpha": alpha, "conv_alpha": alpha}
        rest: dict[str, Any] = {"ranks": "", "alphas": ""}
        return {
            name: dataclasses.replace(self, **changed, **rest) if changed else self
            for name, changed in own.items()
        }

    def of(self, form: Form) -> tuple[int, float]:
        """Rank and alpha of a layer of this form."""
        alpha = self.alpha or float(self.rank)
        if form.area == 1 or not (self.conv_rank or self.conv_alpha):
            return self.rank, alpha
        rank = self.conv_rank or self.rank
        return rank, self.conv_alpha or alpha * rank / self.rank


R = TypeVar("R", bound=Ranked)


def pairs(option: str, text: str, number: type, low: float, high: float) -> list[tuple[str, Any]]:
    """``pattern=number`` pairs in their order.

    Args:
        option: What the text is called in messages.
        text: Pairs with semicolons, commas or new lines between them.
        number: ``int`` or ``float``.
        low: The least number; where it is 0, that itself is none.
        high: The largest.

    Raises:
        ValueError: A pair is malformed.
    """
    found = []
    for part in filter(None, (part.strip() for part in re.split(r"[;,\n]", text))):
        pattern, separator, value = (piece.strip() for piece in part.rpartition("="))
        try:
            given = number(value)
        except ValueError:
            given = None
        if (
            not (pattern and separator)
            or given is None
            or not (low <= given <= high)
            or given == low == 0
        ):
            kind = "whole number" if number is int else "number"
            least = f"from {low:g} to" if low < 0 else "above 0 and at most"
            raise ValueError(
                f"'{part}' in {option} must read pattern={kind} {least} {high:g}, such as output_blocks.*=8."
            )
        found.append((pattern, given))
    return found
