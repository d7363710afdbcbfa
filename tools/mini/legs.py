# SPDX-License-Identifier: Apache-2.0
"""Resumable legs: atomic checkpoints, time limits, a progress bar, learning rates and averaged weights."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

log = logging.getLogger("graft.pretrain")


def save_atomic(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint beside its final place and move it there in one go.

    Args:
        state: What `torch.load(weights_only=True)` can read back.
        path: Where it goes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint of `save_atomic`; None when there is none."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


class Crew:
    """Worker processes that train one model together, each on its share of the batch.

    On a busy CPU two processes of one thread are much faster than one process of two threads, since they wait for
    each other once a step instead of once an operation.
    """

    def __init__(self, rank: int = 0, size: int = 1, meeting: Path | None = None) -> None:
        self.rank, self.size = rank, size
        if size > 1:
            assert meeting is not None
            torch.distributed.init_process_group(
                "gloo", init_method=meeting.as_uri(), rank=rank, world_size=size
            )

    def average(self, tensors: list[torch.Tensor]) -> None:
        """Replace tensors by their mean over the crew."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat.div_(self.size)
        for tensor, part in zip(
            tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.copy_(part.view_as(tensor))

    def agree(self, stop: bool) -> bool:
        """True when any worker wants to stop."""
        if self.size == 1:
            return stop
        flag = torch.tensor([float(stop)])
        torch.distributed.all_reduce(flag)
        return bool(flag.item())


def steps_of_leg(
    start: int, total: int, minutes: float, label: str, crew: Crew | None = None
) -> Iterator[int]:
    """Count steps until the plan or the time is at its end.

    Args:
        start: First step of this leg.
        total: Planned number of steps.
        minutes: Time limit of the leg.
        label: Name on the progress bar.
        crew: Workers that have to stop at the same step.

    Yields:
        The index of each step.
    """
    end = time.monotonic() + 60 * minutes
    crew = crew or Crew()
    quiet = crew.rank > 0
    with tqdm(
        total=total, initial=start, desc=label, mininterval=15, smoothing=0.05, disable=quiet
    ) as bar:
        for step in range(start, total):
            if (crew.size == 1 or step % 10 == 0) and crew.agree(time.monotonic() > end):
                log.info("%s: leg ends at step %d of %d", label, step, total)
                return
            yield step
            bar.update(1)


def learning_rate(
    step: int, total: int, peak: float, warm_up: int = 200, floor: float = 0.02
) -> float:
    """Linear warm-up, then a cosine down to `floor * peak` at `total`."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = min(1.0, (step - warm_up) / max(1, total - warm_up))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def planned_end(folder: Path, total: int) -> int:
    """The step at which the plan ends: `total`, or the number in the file `finish` of the folder."""
    try:
        return int((folder / "finish").read_text())
    except (OSError, ValueError):
        return total


class AveragedWeights:
    """Exponential moving average of named tensors, with a short memory at the start."""

    def __init__(self, parameters: dict[str, torch.Tensor], decay: float = 0.999) -> None:
        self.decay = decay
        self.names = list(parameters)
        self.average = [parameters[name].detach().clone() for name in self.names]
        self.count = 0

    @torch.no_grad()
    def update(self, parameters: dict[str, torch.Tensor]) -> None:
        """Move the average towards the present values."""
        self.count += 1
        decay = min(self.decay, self.count / (self.count + 9))
        torch._foreach_lerp_(
            self.average, [parameters[name].detach() for name in self.names], 1 - decay
        )

    def state(self) -> dict[str, torch.Tensor]:
        """The averaged tensors by name."""
        return dict(zip(self.names, self.average, strict=True))

    def load(self, state: dict[str, torch.Tensor], count: int) -> None:
        """Take up where a checkpoint stopped."""
        self.average = [state[name].clone() for name in self.names]
        self.count = count


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = value


def step_generator(seed: int, step: int, purpose: int) -> torch.Generator:
    """A generator that depends on the step only, so that legs do not change the draws."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 16 + purpose)
