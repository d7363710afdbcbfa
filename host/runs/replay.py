# SPDX-License-Identifier: Apache-2.0
"""The history of a run whose process was killed, from the ``log.jsonl`` that it left."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files.reveal import without_places

MAX_BYTES = 2**27
STATE, TEXT = "interrupted", "ComfyUI was stopped while this run went on."
_POINT = ("step", "loss", "lr", "grad_norm", "s_per_step")
_UNTOLD = ("epoch",)


def replayed(run: str, log: Path, version: int) -> dict[str, Any] | None:
    """What ``Runs`` would know of the run.

    All of it has the seq of one message that no page can have seen, so that a page takes it whole.

    Args:
        run: Id of the run.
        log: Its ``log.jsonl``; rows that are cut off or of others are left out.
        version: Of the record.

    Returns:
        The record; None where the run ended as it should, and where nothing of it is known.

    Raises:
        OSError: The log cannot be read, or is not there.
    """
    if log.stat().st_size > MAX_BYTES:
        return None
    points: list[list[Any]] = []
    events: list[dict[str, Any]] = []
    start: Mapping[str, Any] = {}
    seq, is_whole = 1, False  # the seq of a message with all of this in it
    for row in _rows(log):
        seq += 1
        kind, step = row["kind"], row.get("step", 0)
        if kind == "start":
            start = row
            points = [point for point in points if point[1] <= step]
            events = [event for event in events if 0 < event["step"] <= step]
            continue
        is_whole = kind == "ended"
        if kind == "progress":
            points.append([0, *(row.get(name) for name in _POINT)])
        elif kind not in _UNTOLD and not is_whole:
            at = step or (points[-1][1] if points else 0)
            told = {name: value for name, value in row.items() if name not in ("time", "kind")}
            events.append({"kind": kind, **told, "step": at})
    if is_whole or not points:
        return None
    return {"v": version, "run": run, **_record(seq, start, points, events)}


def _record(
    seq: int, start: Mapping[str, Any], points: list[list[Any]], events: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "seq": seq,
        "first": seq,
        **dict.fromkeys(("node", "prompt_id", "workflow_id")),
        "state": STATE,
        "text": TEXT,
        "step": points[-1][1],
        "total": start.get("total", points[-1][1]),
        "facts": start.get("facts", {}),
        "points": [[seq, *point[1:]] for point in points],
        "events": [{**event, "seq": seq} for event in events],
    }


def _rows(log: Path) -> Iterator[dict[str, Any]]:
    with log.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(without_places(line))
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and isinstance(row.get("kind"), str) and _is_step(row):
                yield row


def _is_step(row: Mapping[str, Any]) -> bool:
    step = row.get("step", 0)
    return isinstance(step, int) and step >= 0
