# SPDX-License-Identifier: Apache-2.0
"""One sink for a run's events: progress bar, text in the node, log, ``log.jsonl``, TensorBoard and browser.

A part that breaks (a full disk, say) is named once, in the log and in the browser, and left out; training goes on.
"""

import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from ...plain import markup
from ...trainers.events import (
    Ended,
    Epoch,
    Event,
    Progress,
    Sample,
    Saved,
    Started,
    Validated,
    Warned,
)
from ..files import paths
from ..files.row_file import RowFile
from . import event_files
from .history import RUNS, Runs, finite, prompt_server
from .usage import used_gib

KINDS: dict[type, str] = {
    Started: "start",
    Progress: "progress",
    Epoch: "epoch",
    Validated: "validated",
    Sample: "sample",
    Saved: "saved",
    Warned: "warned",
    Ended: "ended",
}
MESSAGE_EVERY_S = 0.2
BAR_EVERY_S = 0.4  # each move makes the host tell the browser about every node of the graph
DIGITS = 6  # of what the browser hears; log.jsonl has them all
LINE_EVERY_S = 10.0
LONG_S = 5.0  # from here on an ETA is worth its place
_SMOOTHING = 0.9
_log = logging.getLogger(__name__)


class RunSink:
    """Takes the events of one run; may be called from any thread.

    A call raises nothing but the host's interrupt, which the progress bar brings when the user
    pressed Cancel; the event is delivered before that, and only ``Started`` and some ``Progress`` ask.

    Args:
        run: Id of the run.
        node_id: Execution id of the node, None outside a graph.
        total: Steps of the whole plan.
        prompt_id: Id of the prompt; by default of the one being executed.
        workflow_id: Id of the workflow that the browser shows.
        runs: Where the browser's messages go.
        clock: Seconds, for the rates.
    """

    def __init__(
        self,
        run: str,
        node_id: str | None,
        total: int,
        *,
        prompt_id: str | None = None,
        workflow_id: str | None = None,
        runs: Runs = RUNS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run = run
        self._head = {
            "node": node_id,
            "prompt_id": prompt_id or executing_prompt(),
            "workflow_id": workflow_id,
        }
        self._total = total
        self._runs = runs
        self._clock = clock
        self._lock = threading.RLock()
        self._broken: set[str] = set()
        self._untold: list[Warned] = []
        self._points: list[tuple[Any, ...]] = []
        self._begun = False
        self._sent_at = self._line_at = self._epoch_at = self._bar_at = float("-inf")
        self._memory: float | None = None
        self._pace: float | None = None
        self._last: Progress | None = None
        self._rows: RowFile | None = None
        self._charts: Any = None
        self._bar: Any = None

    def __call__(self, event: Event) -> None:
        """Deliver ``event`` everywhere."""
        with self._lock:
            if isinstance(event, Progress):
                self._note(event)
            self._try("log.jsonl", lambda: self._write(event))
            self._try("TensorBoard", lambda: self._chart(event))
            if not isinstance(event, Epoch):  # as many as steps where the pictures are few
                self._try("browser", lambda: self._tell_all(event))
            self._try("log", lambda: self._say(event))
            if isinstance(event, Ended):
                self._try("run.json", self._close)
        if isinstance(event, Started) or (isinstance(event, Progress) and self._bar_is_due(event)):
            self._try("progress bar", lambda: self._move_bar(event.step, event.total))

    def stage(self, text: str, total: int) -> Callable[..., None]:
        """Show how far a work before the first step is: ``encoding pictures 37 of 500``.

        Args:
            text: What is done.
            total: To how many.

        Returns:
            To be called before each of them, or before ``count`` at once; raises nothing but the host's interrupt.
        """
        began, shown, done = self._clock(), float("-inf"), 0

        def tell(count: int = 1) -> None:
            nonlocal shown, done
            now = self._clock()
            if now - shown >= MESSAGE_EVERY_S:
                shown = now
                left = (now - began) / done * (total - done) if done else 0.0
                is_long = now - began + left >= LONG_S
                eta = f"  ETA {_minutes(left)}" if done and is_long else ""
                self._try("browser", lambda: self._show(f"{text} {done + 1} of {total}{eta}"))
                self._try("progress bar", lambda: self._move_bar(done, total))
            done += count

        return tell

    def _try(self, part: str, action: Callable[[], None]) -> None:
        if part in self._broken:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - nothing here is worth losing a run for
            if type(error).__name__ == "InterruptProcessingException":
                raise
            self._broken.add(part)
            text = f"{part} is left out from here on: {str(error) or type(error).__name__}"
            _log.warning("%s", text)
            self._untold.append(Warned(text))

    def _note(self, event: Progress) -> None:
        if self._pace is None:
            self._pace = event.s_per_step
        self._pace = _SMOOTHING * self._pace + (1 - _SMOOTHING) * event.s_per_step
        self._total = event.total
        self._last = event

    def _write(self, event: Event) -> None:
        row = {"time": round(time.time(), 3), "kind": KINDS[type(event)], **_fields(event)}
        if self._rows is None:
            self._rows = RowFile(paths.run_folder(self.run) / "log.jsonl")
        self._rows.add(json.dumps(row, allow_nan=False))

    def _chart(self, event: Event) -> None:
        if isinstance(event, Started) and event_files.is_installed():
            self._charts = event_files.open_writer(paths.run_folder(self.run), event.step)
        if self._charts is None:
            return
        try:
            for name, value in event_files.scalars(event).items():
                self._charts.add_scalar(name, value, getattr(event, "step", 0))
        except Exception:
            self._close_charts()  # it has a thread and an open file
            raise
        if isinstance(event, Ended):
            self._close_charts()

    def _close_charts(self) -> None:
        charts, self._charts = self._charts, None
        charts.close()

    def _tell_all(self, event: Event) -> None:
        """Tell the browser of the event, and of the parts that broke: after the start, but before the end."""
        untold, self._untold = self._untold, []
        told: list[Event] = [event, *untold] if isinstance(event, Started) else [*untold, event]
        for one in told:
            self._tell(one)

    def _tell(self, event: Event) -> None:
        if not self._begun or isinstance(event, Started):
            self._begin(event)
        if isinstance(event, Started):
            return
        now = self._clock()
        if isinstance(event, Progress):
            is_due = now - self._sent_at >= MESSAGE_EVERY_S or event.step >= event.total
            if is_due:
                self._memory = used_gib()
            values = (event.loss, event.lr, event.grad_norm, event.s_per_step)
            self._points.append((event.step, *map(_short, values), self._memory))
            if is_due:
                self._send_points()
        else:
            points, self._points = self._points, []
            self._runs.add(self.run, KINDS[type(event)], points, **_fields(event))
        if isinstance(event, Ended):
            self._show(f"{event.state}  {self._line()}  {event.text}")

    def _begin(self, event: Event) -> None:
        facts = event.facts if isinstance(event, Started) else {}
        step = event.step if isinstance(event, Started) else 0
        self._total = event.total if isinstance(event, Started) else self._total
        self._runs.start(self.run, step=step, total=self._total, facts=facts, **self._head)
        self._begun = True

    def _send_points(self) -> None:
        if not self._points:
            return
        points, self._points = self._points, []
        self._sent_at = self._clock()
        self._runs.add(self.run, "progress", points)
        self._show(self._line())

    def _say(self, event: Event) -> None:
        now = self._clock()
        if isinstance(event, Started):
            _log.info("run %s: step %d of %d", self.run, event.step, event.total)
        elif isinstance(event, Progress):
            if now - self._line_at >= LINE_EVERY_S or event.step >= event.total:
                self._line_at = now
                _log.info("%s", self._line())
        elif isinstance(event, Epoch):
            if now - self._epoch_at >= LINE_EVERY_S:
                self._epoch_at = now
                _log.info("epoch %d: mean loss %.4f", event.epoch, event.loss)
        elif isinstance(event, Validated):
            which = "" if event.weights == "raw" else f" of the {event.weights} weights"
            _log.info("step %d: validation loss%s %.4f", event.step, which, event.loss)
        elif isinstance(event, Saved):
            _log.info("step %d: saved %s", event.step, event.path)
        elif isinstance(event, Warned):
            _log.warning("%s", event.text)
        elif isinstance(event, Ended):
            _log.info("run %s: %s %s", self.run, event.state, event.text)

    def _line(self) -> str:
        if self._last is None:
            return f"step 0/{self._total}"
        left = (self._last.total - self._last.step) * (self._pace or 0.0)
        return progress_line(self._last, left)

    def _show(self, text: str) -> None:
        server = prompt_server()
        show = getattr(server, "send_progress_text", None)
        if show is not None and self._head["node"] is not None:
            show(markup(text.strip()), self._head["node"], getattr(server, "client_id", None))

    def _bar_is_due(self, event: Progress) -> bool:
        now = self._clock()
        if now - self._bar_at < BAR_EVERY_S and event.step < event.total:
            return False
        self._bar_at = now
        return True

    def _move_bar(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = _progress_bar(total, self._head["node"])
        if self._bar is not None:
            self._bar.update_absolute(done, total)

    def _close(self) -> None:
        if self._rows is not None:
            self._rows.close()
        self._runs.write(self.run)


def progress_line(event: Progress, left_s: float) -> str:
    """``step 120/500  loss 0.0912  lr 1.0e-4  0.31 s/step  ETA 1:58``.

    Args:
        event: The step that is done.
        left_s: Seconds until the last step is done.
    """
    lr = f"{event.lr:.1e}".replace("e-0", "e-").replace("e+0", "e+")
    return (
        f"step {event.step}/{event.total}  loss {event.loss:.4f}  lr {lr}  "
        f"{event.s_per_step:.2f} s/step  ETA {_minutes(left_s)}"
    )


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def executing_prompt() -> str | None:
    """Id of the prompt that the host executes in this context, None outside one."""
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:
        return None
    context = get_executing_context()
    return getattr(context, "prompt_id", None)


def _minutes(seconds: float) -> str:
    whole = int(seconds + 0.5) if seconds < 1e9 else 0
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _progress_bar(total: int, node_id: str | None) -> Any:
    try:
        from comfy.utils import ProgressBar
    except ImportError:
        return None
    return ProgressBar(total, node_id=node_id)


def _fields(event: Event) -> dict[str, Any]:
    return {field.name: finite(getattr(event, field.name)) for field in dataclasses.fields(event)}
