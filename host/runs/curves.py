# SPDX-License-Identifier: Apache-2.0
"""The losses of runs, from LOSS_MAP wires and from the ``log.jsonl`` of runs under output/graft."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...plain import plain
from ...registry import unknown
from ..files import paths

_MOST_STEPS, _HUGE = 1_000_000_000, 1e300
_FIRST_LINE = 2**16  # bytes in which the start of a run is told


@dataclass(frozen=True)
class Curve:
    """The losses of one run; a loss that is not finite is a gap.

    Attributes:
        name: For the legend.
        steps: The steps that have a loss, rising.
        losses: Their losses.
        held_out: Steps and losses of the validation.
    """

    name: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    held_out: tuple[tuple[int, float], ...] = ()


def gather(
    wired: Mapping[str, Any], runs: Sequence[str], names: Sequence[str], most: int
) -> list[Curve]:
    """The curves of sockets and of earlier runs.

    Args:
        wired: LOSS_MAPs by socket; None where nothing is connected.
        runs: See ``of_run``.
        names: For the legend, in the order of both; one that is empty keeps what it is called without.
        most: How many can be told apart.

    Raises:
        ValueError: There are none, too many, or one is not there.
    """
    curves = [of_loss_map(value, key) for key, value in wired.items() if value is not None]
    if not 0 < len(curves) + len(runs) <= most:
        raise ValueError(
            f"{len(curves) + len(runs)} runs are to be compared: connect LOSS_MAPs, or name earlier runs, 1 to {most} "
            "in all."
        )
    curves += [of_run(wanted) for wanted in runs]
    given = [name.strip() for name in names] + [""] * len(curves)
    return [
        replace(curve, name=name or curve.name) for curve, name in zip(curves, given, strict=False)
    ]


def fingerprint(runs: Sequence[str]) -> tuple[Any, ...]:
    """What changes when the logs of runs do: files, sizes and times."""
    rows = []
    for wanted in runs:
        try:
            log = find(wanted)
            status = log.stat()
        except (OSError, ValueError):
            rows.append((wanted, 0, 0))
        else:
            rows.append((str(log), status.st_size, status.st_mtime_ns))
    return tuple(rows)


def of_loss_map(loss_map: Any, name: str) -> Curve:
    """The curve of a LOSS_MAP, of this pack's training or of the host's.

    Raises:
        ValueError: There are no losses in it.
    """
    losses = loss_map.get("loss", ()) if isinstance(loss_map, Mapping) else ()
    values = tuple(float(loss) for loss in losses)
    if not values:
        raise ValueError(f"The LOSS_MAP of {name} has no losses: connect that of a training node.")
    held_out = zip(
        loss_map.get("validation_steps", ()), loss_map.get("validation", ()), strict=False
    )
    pairs = tuple((int(step), float(loss)) for step, loss in held_out)
    return Curve(name, tuple(range(1, len(values) + 1)), values, pairs)


def of_run(wanted: str) -> Curve:
    """The curve of a run under output/graft, as far as its log goes.

    Args:
        wanted: Id of a run or its beginning (8 digits or more), or the name of a LoRA: its newest run.

    Raises:
        ValueError: There is no such run, or it has no losses yet.
    """
    log = find(wanted)
    curve = _read(log, wanted)
    if not curve.steps:
        raise ValueError(
            f"The run {plain(wanted, 100)} ({log.parent.name}) has no losses in its log."
        )
    return curve


def find(wanted: str) -> Path:
    """The log of a run, see ``of_run``.

    Raises:
        ValueError: There is no such run, or more than one.
    """
    logs = _logs()
    if paths.is_run_id(wanted):
        fitting = [log for log in logs if log.parent.name.startswith(wanted)]
        if len(fitting) > 1:
            raise ValueError(
                f"{len(fitting)} runs begin with {plain(wanted, 100)}: give more digits."
            )
        if fitting:
            return fitting[0]
    named: dict[str, Path] = {}
    for log in logs:  # oldest first
        named[_name(log)] = log
    if wanted not in named:
        raise ValueError(
            unknown("run", wanted, filter(None, named))
            if any(named)
            else f"There is no run '{plain(wanted, 100)}': output/graft has no run with a log yet."
        )
    return named[wanted]


def window(curves: Sequence[Curve]) -> float:
    """Over how many steps all are smoothed alike: as the longest is alone."""
    from ..drawing import plots

    return plots.smoothing_window(max(len(curve.steps) for curve in curves))


def describe(curves: Sequence[Curve], over: float) -> str:
    """The curves in words, a line each.

    Args:
        curves: The runs.
        over: Steps that losses are smoothed over.
    """
    from ..drawing import plots

    lines = []
    for curve in curves:
        smooth = [loss for loss in plots.smoothed(curve.losses, over) if math.isfinite(loss)]
        said = f"{curve.name}: steps {curve.steps[0]} to {curve.steps[-1]}"
        if smooth:
            said += f", loss {smooth[min(len(smooth) - 1, int(over))]:.4f} -> {smooth[-1]:.4f}"
        known = [row for row in curve.held_out if math.isfinite(row[1])]
        if known:
            step, least = min(known, key=lambda row: row[1])
            said += f", validation {known[-1][1]:.4f}, least {least:.4f} at step {step}"
        lines.append(said)
    return "\n".join(lines)


def _logs() -> list[Path]:
    """The logs of all runs, oldest first; one that leads out of the output folder is not among them."""
    base = paths.output_folder()
    found = []
    for folder in (base / "graft").glob("*"):
        if not paths.is_run_id(folder.name):
            continue
        try:
            log = paths.inside(base, folder / "log.jsonl")
            found.append((log.stat().st_mtime_ns, folder.name, log))
        except (OSError, ValueError):  # no log, or a link to elsewhere
            continue
    return [log for *_, log in sorted(found)]


def _name(log: Path) -> str:
    """The name that a run was started with, empty where its log does not say."""
    try:
        with log.open("rb") as file:
            row = json.loads(file.readline(_FIRST_LINE))
        return str(row["facts"]["name"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _read(log: Path, name: str) -> Curve:
    """What a log says; a run that was started again counts from there."""
    losses: dict[int, float] = {}
    held_out: dict[int, float] = {}
    for row in _rows(log):
        kind, step, loss = row.get("kind"), row.get("step"), row.get("loss")
        if not isinstance(step, int) or not 0 <= step <= _MOST_STEPS:
            continue
        if kind == "start":
            losses = {at: value for at, value in losses.items() if at <= step}
            held_out = {at: value for at, value in held_out.items() if at <= step and step}
        elif kind in ("progress", "validated"):
            value = math.nan
            if isinstance(loss, (int, float)) and abs(loss) < _HUGE:
                value = float(loss)
            # Of several weights, what is delivered is measured last.
            (losses if kind == "progress" else held_out)[step] = value
    steps = tuple(sorted(losses))
    return Curve(name, steps, tuple(losses[at] for at in steps), tuple(sorted(held_out.items())))


def _rows(log: Path) -> Iterator[dict[str, Any]]:
    with log.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # cut off by a crash
                continue
            if isinstance(row, dict):
                yield row
