# SPDX-License-Identifier: Apache-2.0
"""Scalars of a run for TensorBoard, where the package ``tensorboard`` is installed; nothing without it.

They lie in the run's own folder, so ``tensorboard --logdir output/graft`` shows all runs by their ids.
"""

import importlib.util
from pathlib import Path
from typing import Any

from ...trainers.events import Epoch, Event, Progress, Validated

FLUSH_S = 20  # what a killed process may lose


def is_installed() -> bool:
    """Whether events can be written."""
    return importlib.util.find_spec("tensorboard") is not None


def open_writer(folder: Path, step: int) -> Any:
    """A writer of events into ``folder``, which hides what was written there after ``step`` before.

    Raises:
        ImportError: The package is not installed, or too old for this torch.
        OSError: The folder cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter

    begins = step + 1 if step else 0
    return SummaryWriter(str(folder), purge_step=begins, flush_secs=FLUSH_S)


def scalars(event: Event) -> dict[str, float]:
    """The numbers of an event by their names in TensorBoard; none where it has none."""
    if isinstance(event, Progress):
        return {
            "train/loss": event.loss,
            "train/learning_rate": event.lr,
            "train/gradient_norm": event.grad_norm,
            "train/seconds_per_step": event.s_per_step,
        }
    if isinstance(event, Epoch):
        return {"train/epoch_loss": event.loss}
    if isinstance(event, Validated):
        suffix = "" if event.weights == "raw" else f"_{event.weights}"
        return {f"validation/loss{suffix}": event.loss}
    return {}
