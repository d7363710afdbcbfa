# SPDX-License-Identifier: Apache-2.0
"""History of the runs, for browsers that come late: in memory while they go on, then on disk.

Every message of a run has a ``seq`` (1, 2, 3, ...), which goes on when the same run starts again.
A client drops what it has, applies what follows, and asks for ``since`` its last one after a gap.
"""

import json
import logging
import math
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import paths
from ..files.reveal import without_places
from .replay import replayed

EVENT = "graft.run"
VERSION = 1
MAX_RUNS = 16
POINT = ("step", "loss", "lr", "grad_norm", "s_per_step", "memory")  # append only
_RUNNING = "running"
_log = logging.getLogger(__name__)


def finite(value: Any) -> Any:
    """``value`` as JSON can hold it and a browser may know it: None for NaN, text for the unknown, no files' places."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return without_places(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [finite(item) for item in value]
    return without_places(str(value))


class Runs:
    """The last runs of this process. All methods may be called from any thread.

    Args:
        limit: How many runs are kept in memory; the oldest goes first.
    """

    def __init__(self, limit: int = MAX_RUNS) -> None:
        self._limit = limit
        self._lock = threading.RLock()
        self._runs: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._wishes: dict[str, set[str]] = {}

    def start(
        self,
        run: str,
        *,
        node: str | None = None,
        prompt_id: str | None = None,
        workflow_id: str | None = None,
        step: int = 0,
        total: int = 0,
        facts: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Open a run, or open it again at ``step``, and publish the message ``start``.

        Args:
            run: Id of the run.
            node: Execution id of the node, ``"5"`` or ``"7:5"`` in a subgraph.
            prompt_id: Id of the prompt that runs the node.
            workflow_id: Id of the workflow that the browser shows, None for API users.
            step: Where the run goes on; points after it are dropped.
            total: Steps of the whole plan.
            facts: Plain values about the run.

        Returns:
            The message.
        """
        with self._lock:
            old = self._find(run) or {}
            record: dict[str, Any] = {
                "v": VERSION,
                "run": run,
                "seq": int(old.get("seq", 0)),
                "node": node,
                "prompt_id": prompt_id,
                "workflow_id": workflow_id,
                "state": _RUNNING,
                "text": "",
                "step": step,
                "total": total,
                "facts": finite(facts or {}),
                "points": [row for row in old.get("points", []) if row[1] <= step],
                "events": [row for row in old.get("events", []) if _stays(row, step)],
            }
            self._runs[run] = record
            self._runs.move_to_end(run)
            self._wishes[run] = set()
            while len(self._runs) > self._limit:
                self._wishes.pop(self._runs.popitem(last=False)[0], None)
            record["first"] = record["seq"] + 1
            return self._publish(run, {"kind": "start", "step": step, "facts": record["facts"]})

    def add(
        self, run: str, kind: str, points: Sequence[Sequence[Any]] = (), **fields: Any
    ) -> dict[str, Any]:
        """Note an event with the steps done since the last one, and publish it as one message.

        Args:
            run: Id of the run.
            kind: ``progress``, ``validated``, ``sample``, ``saved``, ``warned`` or ``ended``.
            points: Rows of ``(step, loss, lr, grad_norm, s_per_step, memory)``, oldest first; those of older runs
                have no ``memory`` (GiB in use).
            **fields: What the event says; ``ended`` has ``state`` and ``text``.

        Returns:
            The message.

        Raises:
            KeyError: The run was never started, or is one of the oldest and forgotten.
        """
        with self._lock:
            record = self._runs[run]
            rows = [[finite(value) for value in row] for row in points]
            seq = record["seq"] + 1
            record["points"] += [[seq, *row] for row in rows]
            if rows:
                record["step"] = rows[-1][0]
            message: dict[str, Any] = {"kind": kind, "step": record["step"], **finite(fields)}
            if kind == "ended":
                record.update(state=message.get("state", "done"), text=message.get("text", ""))
            if kind != "progress":
                record["events"].append({"seq": seq, **message})
            if rows:
                # What the event itself says counts: a validation has a loss, too.
                last = dict(zip(POINT[1:], rows[-1][1:], strict=False))
                message = {"points": rows, **last, **message}
            return self._publish(run, message)

    def since(self, run: str, seq: int = 0) -> dict[str, Any] | None:
        """What happened after message ``seq``: head, ``points`` and ``events``; None if unknown.

        ``points`` are rows of ``(seq, step, loss, lr, grad_norm, s_per_step, memory)``. ``reset`` says that
        the client must drop what it has, as the run was started again after ``seq``.
        """
        with self._lock:
            record = self._find(run)
            if record is None:
                return None
            reset = seq < record["first"] or seq > record["seq"]
            after = 0 if reset else seq
            return record | {
                "reset": reset,
                "points": [row for row in record["points"] if row[0] > after],
                "events": [row for row in record["events"] if row["seq"] > after],
            }

    def heads(self) -> list[dict[str, Any]]:
        """The runs in memory without their points and events, oldest first."""
        with self._lock:
            return [
                {key: value for key, value in record.items() if key not in ("points", "events")}
                for record in self._runs.values()
            ]

    def write(self, run: str) -> Path:
        """Write the run as ``run.json`` into its folder.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        with self._lock:
            text = json.dumps(self._runs[run], allow_nan=False, separators=(",", ":"))
        target = paths.run_folder(run) / "run.json"
        return paths.atomic_write(target, lambda path: _write_text(path, text))

    def ask(self, run: str, wish: str) -> str | None:
        """Note that a user wants the run to ``finish`` or to ``save``.

        Returns:
            The state of the run, None when it is unknown; the wish counts if it is ``running``.
        """
        with self._lock:
            record = self._find(run)
            if record is None:
                return None
            if run in self._runs and record["state"] == _RUNNING:
                self._wishes[run].add(wish)
            return str(record["state"])

    def wants_finish(self, run: str) -> bool:
        """Whether the run was asked to end early and well; stays so until it is started again."""
        with self._lock:
            return "finish" in self._wishes.get(run, ())

    def wants_save(self, run: str) -> bool:
        """Whether the run was asked to save; true once for each time that it was asked."""
        with self._lock:
            wishes = self._wishes.get(run, set())
            was_asked = "save" in wishes
            wishes.discard("save")
            return was_asked

    def _find(self, run: str) -> dict[str, Any] | None:
        if not paths.is_run_id(run):
            return None
        return self._runs[run] if run in self._runs else _from_disk(run)

    def _publish(self, run: str, message: dict[str, Any]) -> dict[str, Any]:
        record = self._runs[run]
        record["seq"] += 1
        head = {key: record[key] for key in ("v", "run", "seq", "node", "prompt_id")}
        full = head | {"workflow_id": record["workflow_id"], "total": record["total"]} | message
        _send(full)
        return full


def _stays(event: Mapping[str, Any], step: int) -> bool:
    """Whether an event is still true when the run goes on at ``step``; what is warned of at first is said again."""
    at = event.get("step", 0)
    return 0 < at <= step or (at == 0 < step and event.get("kind") != "warned")


def _send(message: dict[str, Any]) -> None:
    server = prompt_server()
    if server is not None:
        try:
            server.send_sync(EVENT, message)
        except (RuntimeError, AttributeError) as error:  # the event loop is not there or is closing
            _log.debug("the browser was not told: %s", error)


def prompt_server() -> Any:
    """The host's server object, None where there is none (a test, a script).

    The host imports its server before any pack; an import here would be tried again at every message of a script.
    """
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _from_disk(run: str) -> dict[str, Any] | None:
    """What the last session wrote at its end; where it was killed, what its log says."""
    try:
        cut_off = replayed(run, paths.run_folder(run, create=False) / "log.jsonl", VERSION)
    except (OSError, ValueError):
        cut_off = None
    return cut_off or _written(run)


def _written(run: str) -> dict[str, Any] | None:
    try:
        record = json.loads((paths.run_folder(run, create=False) / "run.json").read_text("utf-8"))
        wanted = {"seq": int, "first": int, "state": str, "points": list, "events": list}
        if record["run"] == run and all(isinstance(record[k], t) for k, t in wanted.items()):
            return record
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


RUNS = Runs()


def wants_finish(run: str) -> bool:
    """Whether ``run`` was asked to end early, see ``Runs.wants_finish``."""
    return RUNS.wants_finish(run)


def wants_save(run: str) -> bool:
    """Whether ``run`` was asked to save since this was last asked, see ``Runs.wants_save``."""
    return RUNS.wants_save(run)
