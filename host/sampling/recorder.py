# SPDX-License-Identifier: Apache-2.0
"""What is kept of a sampling to be plotted: how large D was at each step, or other numbers of its calls.

The record is no output of the node that samples, so it travels beside the LATENT: a trace knows the latents that it led
to, by their hash, and is found by them when it is plotted. Only numbers are kept.
"""

import hashlib
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

TITLE, SIZE, CHANGE = "D by step (root mean square)", "|D|", "|D - D before|"
_KEPT = 8  # traces of one recorder: one sampler may be in several places of a graph


@dataclass(frozen=True)
class Trace:
    """One run of a sampler.

    Attributes:
        title: What the numbers are.
        place: What there is one of each number for: a step or a call.
        sigmas: The level at each of these.
        lines: The numbers by name, each as long as ``sigmas``; nan where there is none.
        calls: How often the model was asked.
        steps: How many steps there were to be.
        results: Hashes of the latents that came of it.
    """

    title: str
    place: str
    sigmas: tuple[float, ...]
    lines: dict[str, tuple[float, ...]]
    calls: int
    steps: int
    results: frozenset[str]


@dataclass(eq=False)
class Recorder:
    """The last traces of a SAMPLER or a guided MODEL, the newest last."""

    traces: "deque[Trace]" = field(default_factory=lambda: deque(maxlen=_KEPT))

    def of(self, samples: torch.Tensor | None) -> tuple[Trace, bool]:
        """The trace that led to some latents, else the newest; and whether it led to them.

        Raises:
            ValueError: Nothing was recorded.
        """
        if not self.traces:
            raise ValueError(
                "Nothing is recorded. Connect SAMPLER of Record Steps, or MODEL of Guide Model, to the node that "
                "samples, and the LATENT of that node here; if that node was not run again, change its seed."
            )
        wanted = None if samples is None else fingerprint(samples)
        found = [trace for trace in self.traces if wanted in trace.results]
        return (found or self.traces)[-1], bool(found)


class RecordingSampler:
    """A SAMPLER around another one; all it does not do itself is the other's."""

    def __init__(self, inner: Any, recorder: Recorder):
        self._inner, self._recorder = inner, recorder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_inner", "_recorder"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def sample(
        self,
        model_wrap: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., Any] | None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Sample as the inner sampler does."""
        model, watch = _Counted(model_wrap), _Watch(callback)
        course = sigmas.detach().double().cpu().flatten().tolist()  # some samplers write into it
        samples = self._inner.sample(model, sigmas, extra_args, watch, *args, **kwargs)
        results = {fingerprint(_out(model_wrap, samples.to(torch.float32)))}
        if watch.last is not None:
            results.add(fingerprint(_out(model_wrap, watch.last.cpu())))
        told = tuple(course[i] for i in watch.steps)
        lines = {SIZE: tuple(watch.size), CHANGE: tuple(watch.change)}
        counts = model.calls, len(course) - 1
        self._recorder.traces.append(Trace(TITLE, "step", told, lines, *counts, frozenset(results)))
        return samples


class _Counted:
    """The guider, counted; everything else is the guider's own."""

    def __init__(self, inner: Any):
        self._inner, self.calls = inner, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self._inner(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)


class _Watch:
    """The host's callback, and what is kept of what it is told."""

    def __init__(self, callback: Callable[..., Any] | None):
        self._callback = callback
        self.steps: list[int] = []
        self.size: list[float] = []  # the mean over the batch, as the next
        self.change: list[float] = []
        self.last: torch.Tensor | None = None

    def __call__(self, step: int, denoised: torch.Tensor, x: torch.Tensor, total: int) -> Any:
        self.steps.append(int(step))
        self.size.append(_size(denoised))
        before = denoised if self.last is None else self.last
        self.change.append(math.nan if before is denoised else _size(denoised - before))
        self.last = denoised
        return None if self._callback is None else self._callback(step, denoised, x, total)


def fingerprint(samples: torch.Tensor) -> str:
    """A hash of latents, the same on any device."""
    data = samples.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def record(sampler: Any) -> tuple[RecordingSampler, Recorder]:
    """A SAMPLER that samples as ``sampler`` does, and what it records."""
    recorder = Recorder()
    return RecordingSampler(sampler, recorder), recorder


def _size(latent: torch.Tensor) -> float:
    """Root mean square of each latent, the mean over the batch."""
    flat = latent.detach().float().reshape(latent.shape[0], -1)
    return float(flat.square().mean(dim=1).sqrt().mean())


def _out(model_wrap: Any, samples: torch.Tensor) -> torch.Tensor:
    """What the host makes of the sampler's latents when it is done."""
    return model_wrap.inner_model.process_latent_out(samples)
