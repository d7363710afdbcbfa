# SPDX-License-Identifier: Apache-2.0
"""What a run tells the world: frozen events through one sink."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Started:
    """A run begins at ``step`` of ``total``; ``facts`` are plain values for the log."""

    total: int
    step: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """One optimizer step is done. ``step`` counts from 1."""

    step: int
    total: int
    loss: float
    lr: float
    grad_norm: float
    s_per_step: float


@dataclass(frozen=True)
class Epoch:
    """Pass number ``epoch`` (from 1) over the pictures ended with ``step``; ``loss`` is the mean of its steps."""

    epoch: int
    step: int
    loss: float


@dataclass(frozen=True)
class Validated:
    """The held-out pictures' loss after ``step`` steps, and pairs of sigma and loss at each noise level.

    ``change`` is |dW| / |W| by block; ``weights`` says which weights these are (``raw``, ``averaged``).
    """

    step: int
    loss: float
    per_sigma: tuple[tuple[float, float], ...]
    change: dict[str, float] = field(default_factory=dict)
    weights: str = "raw"


@dataclass(frozen=True)
class Sample:
    """Pictures sampled at ``step``, as ComfyUI image references (filename, subfolder, type).

    ``prompts`` has one for each picture, or none where the pictures are of something else.
    """

    step: int
    images: tuple[dict[str, str], ...]
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Saved:
    """A file was written; ``path`` is relative to the output folder."""

    step: int
    path: str


@dataclass(frozen=True)
class Warned:
    """Something the user should know that does not end the run."""

    text: str


@dataclass(frozen=True)
class Ended:
    """The run is over: ``state`` is ``done``, ``finished`` (early and well), ``interrupted`` or ``error``."""

    state: str
    text: str = ""


Event: TypeAlias = Started | Progress | Epoch | Validated | Sample | Saved | Warned | Ended
Sink: TypeAlias = Callable[[Event], None]
