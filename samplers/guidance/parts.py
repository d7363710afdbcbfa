# SPDX-License-Identifier: Apache-2.0
"""What guidance is made of: a loss, how strongly it acts and when, and what the loss may look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch

from ...registry import Registry, check_limits, option
from .steps import Step

Embed = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Seen:
    """One picture on its way, and what it is compared with.

    Attributes:
        picture: What D makes of it, ``[1, 3, h, w]``; -1 is black, 1 is white, and it may go beyond.
        target: A picture to become like, of the same shape.
        features: Of the picture, ``[1, c, h', w']`` each.
        target_features: Of the target, in the same shapes.
        text: Embedding of a text, ``[1, d]``.
        embed: Makes embeddings ``[n, d]`` of pictures ``[n, 3, side, side]``.
        side: Pixels a side of what is embedded.
        generator: For this picture and step alone, on the CPU.
    """

    picture: torch.Tensor
    target: torch.Tensor | None = None
    features: tuple[torch.Tensor, ...] = ()
    target_features: tuple[torch.Tensor, ...] = ()
    text: torch.Tensor | None = None
    embed: Embed | None = None
    side: int = 224
    generator: torch.Generator | None = None


class Loss(Protocol):
    """A distance that falls when a picture becomes what it should be.

    Attributes:
        needs: Of ``target``, ``features`` and ``text`` those that it looks at.
        power: Of 1 + sigma^2, which its gradient is multiplied by.
    """

    needs: ClassVar[frozenset[str]]
    power: ClassVar[float]

    def __call__(self, seen: Seen) -> torch.Tensor:
        """The loss of one picture, a number ``[]``."""
        ...


class Course(Protocol):
    """How the strength runs over the steps that are guided."""

    def __call__(self, progress: float) -> float:
        """The share of the strength at 0 <= progress <= 1 of these steps."""
        ...


LOSSES: Registry[Loss] = Registry("guidance")
COURSES: Registry[Course] = Registry("schedule")


@dataclass(frozen=True, eq=False)
class Target:
    """What a loss compares with, beyond its settings.

    Attributes:
        images: ``[b, 3, h, w]`` in -1..1, of any size; picture i of a batch is compared with image i modulo b.
        text: Embedding of a text, ``[1, d]``.
        vision: What embeds pictures; only the host knows what it is.
    """

    images: torch.Tensor | None = None
    text: torch.Tensor | None = None
    vision: Any = None


@dataclass(frozen=True, eq=False)
class Term:
    """One loss that guides, of any number that are added up."""

    loss: Loss
    course: Course
    strength: float = option(
        40.0,
        "How strongly the picture is drawn to the target; 0 is not at all, and less than 0 pushes it away.",
        min=-1e6,
        max=1e6,
    )
    start_percent: float = option(
        0.0, "Share of the steps that are done before the guidance begins.", min=0.0, max=1.0
    )
    end_percent: float = option(
        1.0, "Share of the steps that are done when the guidance ends.", min=0.0, max=1.0
    )
    target: Target = field(default=Target())

    def __post_init__(self) -> None:
        check_limits(self)
        if self.start_percent >= self.end_percent:
            raise ValueError(
                f"start_percent is {self.start_percent:g} and end_percent is {self.end_percent:g}: the guidance must "
                "begin before it ends."
            )

    def weight(self, step: Step) -> float:
        """What the loss is multiplied by at a step; 0 where it does not act."""
        if not step.has_picture or not self.start_percent <= step.progress < self.end_percent:
            return 0.0
        done = (step.progress - self.start_percent) / (self.end_percent - self.start_percent)
        return self.strength * self.course(done) * step.gain**self.loss.power
