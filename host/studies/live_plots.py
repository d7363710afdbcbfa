# SPDX-License-Identifier: Apache-2.0
"""What a node's plot shows while its widgets are edited, before anything runs: numbers for a drawing in a browser."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ...adapters.file import AdapterFile
from ...registry import unknown
from ...trainers.facts import facts
from ...trainers.objectives import SAMPLES, build
from ...trainers.objectives.check import check
from ...trainers.objectives.report import shares, spread
from ..files import lora_comparison, lora_files
from ..model import sampling, skeleton
from ..sampling import schedule as schedules

BINS, POINTS = 60, 400
MOST_STEPS = 10_000  # of the node
_MAX_FILES, _KEPT = 4, 12


@dataclass(frozen=True)
class ObjectiveWidgets:
    """The widgets of Objective that its plot depends on, as the node has them."""

    noise: str = "model"
    weight: str = "one"
    metric: str = "l2"
    noising: str = "gaussian"
    options: str = ""
    preserve: float = 1.0
    preserve_on: str = SAMPLES


@dataclass(frozen=True)
class ScheduleWidgets:
    """The widgets of Noise Schedule."""

    schedule: str = "karras"
    steps: int = 18
    sigma_min: float = 0.0
    sigma_max: float = 0.0
    rho: float = 7.0
    options: str = ""


def objective(widgets: ObjectiveWidgets, source: str, name: str = "") -> dict[str, Any]:
    """Where an objective draws the noise levels of a model, and what each counts.

    Args:
        widgets: Of the node.
        source: Where the MODEL comes from, one of ``skeleton.SOURCES``.
        name: The file or family.

    Returns:
        ``edges`` of bins, whether they are ``log``; by bin ``drawn``, ``weight`` and ``counted``; and ``text``.

    Raises:
        ValueError: The objective is none, or does not go with the model; in the words of the run.
    """
    model = skeleton.skeleton(source, name)
    made = build.objective(
        widgets.noise,
        widgets.weight,
        widgets.metric,
        widgets.noising,
        widgets.options,
        preserve=widgets.preserve,
        preserve_on=widgets.preserve_on,
    )
    with torch.inference_mode(False), torch.no_grad():
        check(made, sampling.of_model(model))
        if made.zero_terminal:
            model = sampling.zero_terminal(model)
        levels = sampling.of_model(model)
        found = spread(made, levels, BINS)
    five, half, ninety_five = found.quantiles
    low, middle, high = shares(found.counted, found.edges, (0.25, 0.5, 0.75))
    return {
        "title": f"{skeleton.title(model)}, {facts(levels)}",
        "edges": found.edges,
        "log": found.is_log,
        "drawn": found.drawn,
        "weight": _finite(found.weight),
        "counted": found.counted,
        "text": f"drawn: half below {half:.3g}, 9 of 10 in {five:.3g} to {ninety_five:.3g}; what counts: half in "
        f"{low:.3g} to {high:.3g}, middle {middle:.3g}",
    }


def schedule(widgets: ScheduleWidgets, source: str = "", name: str = "") -> dict[str, Any]:
    """The noise levels of a schedule.

    Args:
        widgets: Of the node.
        source: Where the MODEL comes from; empty where none is connected.
        name: The file or family.

    Returns:
        ``at``, numbers of steps; ``sigmas`` there, of long schedules every few steps only; and ``text``.

    Raises:
        ValueError: There is no such schedule, or it has no such levels.
    """
    if not 1 <= widgets.steps <= MOST_STEPS:
        raise ValueError(f"steps is {widgets.steps}; it must be between 1 and {MOST_STEPS}.")
    model = skeleton.skeleton(source, name) if source else None
    ends = {"sigma_min": widgets.sigma_min, "sigma_max": widgets.sigma_max, "rho": widgets.rho}
    made, text = schedules.sigmas(widgets.schedule, widgets.steps, widgets.options, model, **ends)
    sigmas = made.tolist()
    every = max(1, math.ceil(len(sigmas) / POINTS))
    at = sorted({*range(0, len(sigmas), every), len(sigmas) - 2, len(sigmas) - 1})
    title = skeleton.title(model) if model is not None else ""
    return {"title": title, "at": at, "sigmas": [sigmas[i] for i in at], "text": text}


def overlap(files: Sequence[str], source: str = "", name: str = "") -> dict[str, Any]:
    """How much LoRA files change the same things: the cosine of every two changes, by block.

    Args:
        files: Names of ``lora_files.names``, two to four.
        source: Where the MODEL comes from, for files that name layers differently; empty for none.
        name: The file or family.

    Returns:
        ``text``, ``blocks``, and for each of ``pairs`` the places of its two files, its ``cosine`` in all and
        ``by_block``.

    Raises:
        ValueError: A file is not there or broken, or two have no layer in common.
    """
    if not 2 <= len(files) <= _MAX_FILES:
        raise ValueError(f"{len(files)} files are chosen; the overlap is of two to {_MAX_FILES}.")
    marks = [lora_files.fingerprint(file) for file in files]
    pairs = []
    for one, other in itertools.combinations(range(len(files)), 2):
        found = _overlap((files[one], files[other]), (marks[one], marks[other]), source, name)
        pairs.append((one, other, found))
    return _shown(pairs)


def overlap_of(adapters: Sequence[AdapterFile], model: Any = None) -> dict[str, Any]:
    """As ``overlap``, of adapters that a run has at hand.

    Args:
        adapters: Two or more.
        model: The MODEL that they are for, or None.

    Returns:
        As ``overlap``; ``error`` where they cannot be compared.
    """
    pairs = []
    for one, other in itertools.combinations(range(len(adapters)), 2):
        try:
            found = lora_comparison.overlap(adapters[one], adapters[other], model)
        except ValueError as error:  # it is only a picture: the run goes on without it
            return {"error": str(error)}
        pairs.append((one, other, found))
    return _shown(pairs)


def _shown(pairs: Sequence[tuple[int, int, Mapping[str, float]]]) -> dict[str, Any]:
    blocks = list(dict.fromkeys(b for _, _, found in pairs for b in found if b))
    said = [f"{one + 1} and {other + 1}: cosine {found['']:.2f}" for one, other, found in pairs]
    return {
        "blocks": blocks,
        "text": "; ".join(said),
        "pairs": [
            {
                "files": [one, other],
                "cosine": _number(found[""]),
                "by_block": [_number(found.get(b, math.nan)) for b in blocks],
            }
            for one, other, found in pairs
        ],
    }


@lru_cache(maxsize=_KEPT)
def _overlap(
    files: tuple[str, str], fingerprints: tuple[str, str], source: str, name: str
) -> Mapping[str, float]:
    model = skeleton.skeleton(source, name) if source else None
    with torch.inference_mode(False), torch.no_grad():
        one, other = (lora_files.load_any(file) for file in files)
        return lora_comparison.overlap(one, other, model)


def widgets_of(kind: type, values: Mapping[str, Any]) -> Any:
    """Widgets as a browser sends them.

    Raises:
        ValueError: One is unknown, or of another kind than the node's.
    """
    fields = {field: type(default) for field, default in vars(kind()).items()}
    for key, value in values.items():
        if key not in fields:
            raise ValueError(unknown("widget", str(key), fields))
        wanted = (int, float) if fields[key] is float else (fields[key],)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ValueError(f"{key} must be a {fields[key].__name__}.")
    return kind(**values)


def _finite(values: Sequence[float]) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    """JSON has no nan."""
    return value if math.isfinite(value) else None
