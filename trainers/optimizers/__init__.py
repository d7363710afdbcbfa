# SPDX-License-Identifier: Apache-2.0
"""Optimizers and learning-rate schedules, one file each, and how they share the trained parameters.

A parameter's name says which part it belongs to: ``text_encoders.<...>`` is the text encoders',
``embeddings.<...>`` is a token's vectors, and everything else is the model's. Within a part, a
matrix whose name ends in ``.up`` or ``.lora_up`` is LoRA's B, which starts at zero (Hayou et al.
2024, sec. 4; arXiv 2402.12354).
"""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeAlias

import torch

from ...registry import Registry, check_limits, option

Groups: TypeAlias = Sequence[torch.nn.Parameter] | Sequence[dict[str, Any]]
MODEL, TEXT, EMBEDDING = "model", "text", "embedding"
PREFIXES = {TEXT: "text_encoders.", EMBEDDING: "embeddings."}
UP = ("up", "lora_up")


class Algorithm(Protocol):
    """Settings that build an optimizer.

    A class may also declare, where the default does not hold: ``running`` (), the keys of a group
    that change from step to step and belong into a state; ``one_lr`` False, whether all groups have
    to share one learning rate; ``averages`` False, whether its own average is the result; ``usual``,
    the learning rates that make sense; ``schedules`` (), those it is meant for, all when empty; and
    the methods ``effective_lr(optimizer)`` and ``available(device)``, which raises a ``ValueError``.
    """

    @property
    def lr(self) -> float:
        """The peak learning rate."""

    @property
    def weight_decay(self) -> float:
        """Pull towards zero."""

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """The optimizer over parameters or, as torch has them, groups of them."""


class Schedule(Protocol):
    """The learning rate's factor over the plan."""

    def factor(self, step: int, total: int) -> float:
        """The factor in [0, 1] for ``step`` (from 0) of ``total``."""


OPTIMIZERS: Registry[Algorithm] = Registry("optimizer")
SCHEDULES: Registry[Schedule] = Registry("schedule")


def parameters_of(groups: Groups) -> list[torch.nn.Parameter]:
    """All parameters of ``groups``, in their order."""
    found: list[torch.nn.Parameter] = []
    for entry in groups:
        found += entry["params"] if isinstance(entry, dict) else [entry]
    return found


def need(package: str, choice: str) -> None:
    """Make sure that a package is installed.

    Args:
        package: What is imported and installed under this name.
        choice: The optimizer that needs it.

    Raises:
        ValueError: It is not; says how to go on.
    """
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"The optimizer {choice} needs the Python package {package}, which is not installed: "
            f"pip install {package} in ComfyUI's environment, or choose adamw or adafactor."
        )


from . import schedules  # noqa: E402  (its members register in the family above)

OPTIMIZERS.discover(__path__, __name__)
SCHEDULES.discover(schedules.__path__, schedules.__name__)


@dataclass(frozen=True, repr=False)
class Optimizer:
    """An algorithm, its schedule, what differs between the trained parts, and the moving average."""

    algorithm: Algorithm = OPTIMIZERS.get("adamw")()
    schedule: Schedule = SCHEDULES.get("constant")()
    ema_decay: float = option(
        0.0,
        "The result is a moving average of the weights with this decay, 0.999 for example; the last weights "
        "become a second file. 0: no average.",
        min=0.0,
        max=0.999999,
    )
    text_lr: float = option(
        0.0, "Peak learning rate of the text encoders; 0 is the model's.", min=0.0, max=10.0
    )
    embedding_lr: float = option(
        0.0, "Peak learning rate of trained tokens; 0 is the model's.", min=0.0, max=10.0
    )
    text_weight_decay: float = option(
        -1.0, "Weight decay of the text encoders; -1 is the model's.", min=-1.0, max=100.0
    )
    embedding_weight_decay: float = option(
        -1.0, "Weight decay of trained tokens; -1 is the model's.", min=-1.0, max=100.0
    )
    text_stop: float = option(
        1.0,
        "Fraction of the plan after which the text encoders stay as they are.",
        min=0.0,
        max=1.0,
    )
    embedding_stop: float = option(
        1.0, "Fraction of the plan after which trained tokens stay as they are.", min=0.0, max=1.0
    )
    loraplus_ratio: float = option(
        1.0,
        "LoRA+: the up matrices learn this many times faster than the down matrices; 16 is usual.",
        min=1.0,
        max=1000.0,
    )

    def __post_init__(self) -> None:
        check_limits(self)
        name = _name(self.algorithm)
        if self.ema_decay and getattr(self.algorithm, "averages", False):
            raise ValueError(
                f"ema_decay is {self.ema_decay} and the optimizer is {name}, whose result is an average already; "
                "set ema_decay to 0, or choose another optimizer."
            )
        if getattr(self.algorithm, "one_lr", False):
            main = self.algorithm.lr
            for field, same in (
                ("text_lr", (0.0, main)),
                ("embedding_lr", (0.0, main)),
                ("loraplus_ratio", (1.0,)),
            ):
                if getattr(self, field) not in same:
                    raise ValueError(
                        f"{name} steps all parts with one learning rate, but learning_rate is {main:g} and {field} "
                        f"is {getattr(self, field):g}; leave {field} at {same[0]:g}, or choose adamw."
                    )

    def __repr__(self) -> str:
        """Both parts, and the rest where it is not the default: what is added later changes no file's text."""
        said = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if not field.metadata or getattr(self, field.name) != field.default
        ]
        return f"{type(self).__name__}({', '.join(said)})"

    @property
    def averages(self) -> bool:
        """Whether the result is an average and not the last weights."""
        return self.ema_decay > 0 or getattr(self.algorithm, "averages", False)

    def factor(self, step: int, total: int) -> float:
        """The schedule's factor for ``step`` (from 0); past ``total`` the last value holds."""
        return self.schedule.factor(min(step, total - 1), total)

    def lr(self, step: int, total: int) -> float:
        """The model's learning rate at ``step`` (from 0); past ``total`` the last value holds."""
        return self.algorithm.lr * self.factor(step, total)

    def groups(self, parameters: Mapping[str, torch.nn.Parameter]) -> list[dict[str, Any]]:
        """Parameters that are stepped alike, as torch's optimizers take them.

        Args:
            parameters: The trained parameters by name.

        Returns:
            One dict a group, with ``params``, ``lr``, ``weight_decay``, and for the loop ``peak`` (the
            peak learning rate), ``part`` and ``stop`` (the fraction of the plan after which it rests).

        Raises:
            ValueError: LoRA+ is asked for, and nothing that is trained is an up matrix.
        """
        members: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
        is_plus = self.loraplus_ratio != 1.0
        for name, parameter in parameters.items():
            key = (part_of(name), is_plus and name.rpartition(".")[2] in UP)
            members.setdefault(key, []).append(parameter)
        if is_plus and not any(is_up for _, is_up in members):
            raise ValueError(
                f"loraplus_ratio is {self.loraplus_ratio:g}, but the network has no up matrices as a LoRA has; "
                "set it to 1, or train a LoRA."
            )
        return [self._group(*key, found) for key, found in members.items()]

    def _group(self, part: str, is_up: bool, found: list[torch.nn.Parameter]) -> dict[str, Any]:
        peak, decay, stop = self.algorithm.lr, self.algorithm.weight_decay, 1.0
        if part != MODEL:
            peak = getattr(self, f"{part}_lr") or peak
            own = getattr(self, f"{part}_weight_decay")
            decay = decay if own < 0 else own
            stop = getattr(self, f"{part}_stop")
        peak = peak * self.loraplus_ratio if is_up else peak
        values = {"lr": peak, "weight_decay": decay, "peak": peak, "part": part, "stop": stop}
        return {"params": found, **values}

    def check(self, device: torch.device) -> None:
        """Whether the algorithm can run here.

        Args:
            device: Where it is going to step.

        Raises:
            ValueError: It cannot; names the choice, and what to do.
        """
        available = getattr(self.algorithm, "available", None)
        if available is not None:
            available(device)

    def notes(self, names: Iterable[str]) -> list[str]:
        """What the user should know about these settings, for parameters of these names."""
        algorithm, said = self.algorithm, []
        name, schedule = _name(algorithm), _name(self.schedule)
        low, high = getattr(algorithm, "usual", (0.0, float("inf")))
        if not low <= algorithm.lr <= high:
            said.append(
                f"learning_rate {algorithm.lr:g} is unusual for {name}, which is at home between {low:g} "
                f"and {high:g}; {type(algorithm)().lr:g} is a start, which learning_rate 0 takes."
            )
        wanted = getattr(algorithm, "schedules", ())
        if wanted and schedule not in wanted:
            said.append(f"{name} is meant for the schedule {' or '.join(wanted)}, not {schedule}.")
        there = {part_of(name) for name in names}
        for part, suffix in ((p, s) for p in PREFIXES for s in ("lr", "weight_decay", "stop")):
            field = f"{part}_{suffix}"
            if part not in there and getattr(self, field) != getattr(Optimizer, field):
                said.append(f"{field} has no effect: nothing of that part is trained.")
        return said

    def notes_on_length(self, end: int, total: int) -> list[str]:
        """What the user should know about the course of the learning rate over a plan.

        Args:
            end: The step that is trained to.
            total: Length of the plan.

        Returns:
            Sentences; none where all is well.
        """
        said, warmup = [], getattr(self.schedule, "warmup", 0)
        if warmup >= total:
            most = max(self.factor(step, total) for step in (0, total - 1))
            said.append(
                f"The warm-up of {warmup} steps is longer than the plan of {total}: the learning rate comes to "
                f"{most:.0%} of its peak."
            )
        if end > total:
            last = self.lr(total, total)
            rest = f"it holds up to step {end}"
            if last == 0:
                rest = f"nothing is learned up to step {end}. Set total_steps to the length of the whole"
            said.append(
                f"The plan ends at step {total} with a learning rate of {last:.3g}: {rest}."
            )
        return said


def part_of(name: str) -> str:
    """Which part the trained parameter of this name belongs to."""
    return next((part for part, start in PREFIXES.items() if name.startswith(start)), MODEL)


def _name(part: object) -> str:
    return str(getattr(part, "name", type(part).__name__))
