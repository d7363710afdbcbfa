# SPDX-License-Identifier: Apache-2.0
"""States of a run on disk while it goes on, so that a run that was cut off goes on where it was."""

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ...trainers.events import Saved, Sink, Warned
from ...trainers.plan import Plan
from ...trainers.state import State
from ..files import paths, states

_NAME = re.compile(rf"step_([0-9]+){re.escape(states.SUFFIX)}")


class Autosave:
    """The states in the folder of one run.

    Args:
        folder: Of the run.
        plan: How often to save, and how many to keep.
        clock: Seconds.
    """

    def __init__(
        self, folder: Path, plan: Plan, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._plan, self._clock = folder, plan, clock
        self._saved_at = clock()

    def is_due(self, step: int) -> bool:
        """Whether the state after ``step`` is to be saved now."""
        every, minutes = self._plan.autosave_every, self._plan.autosave_minutes
        is_late = minutes > 0 and self._clock() - self._saved_at >= 60 * minutes
        return step > 0 and (is_late or (every > 0 and step % every == 0))

    def save(self, state: State, sink: Sink) -> str:
        """Write a state, and remove the oldest beyond those that are kept; training goes on whatever happens.

        Args:
            state: Where the run stands.
            sink: Hears of it, or of what went wrong.

        Returns:
            Where it is below the output folder; empty when it is of no use or could not be written.
        """
        self._saved_at = self._clock()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in state.adapter.values()):
            return ""  # an older one that is good must not make room for it
        path = self._folder / f"step_{state.step:06}{states.SUFFIX}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)  # a user may have deleted it
            paths.atomic_write(path, states.writer(state))
            where = paths.relative_to_output(path)
        except (OSError, TypeError, ValueError) as error:
            sink(Warned(f"The state after step {state.step} could not be saved: {error}"))
            return ""
        for _, old in self._files()[self._plan.keep_states :]:
            with contextlib.suppress(OSError):
                old.unlink()
        sink(Saved(state.step, where))
        return where

    def found(self, warn: Callable[[str], None]) -> State | None:
        """The newest state that can be read.

        Args:
            warn: Told of those that cannot be.
        """
        for _, path in self._files():
            try:
                return states.load(path)
            except (OSError, ValueError) as error:
                warn(f"A state of this run cannot be used: {error}")
        return None

    def forget(self) -> None:
        """Remove the states, and what a killed process left half-written."""
        for path in [*(path for _, path in self._files()), *self._folder.glob(".graft-*.tmp")]:
            with contextlib.suppress(OSError):
                path.unlink()

    def _files(self) -> list[tuple[int, Path]]:
        """Steps and files, the newest first."""
        found = [(_NAME.fullmatch(path.name), path) for path in self._folder.glob("step_*")]
        return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)
