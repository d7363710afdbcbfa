# SPDX-License-Identifier: Apache-2.0
"""Noise levels, and what was recorded of a sampler, as pictures and in words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...plain import plain
from ...samplers import checked
from ..drawing.lines import Line, Lines, draw_lines
from .recorder import Recorder

_NAME = 60


def plot_sigmas(
    given: Mapping[str, torch.Tensor | None], names: Sequence[str], is_log: bool
) -> tuple[torch.Tensor, str]:
    """Draw schedules over their steps.

    Args:
        given: SIGMAS ``[N + 1]`` by socket; None where nothing is connected.
        names: What each is called, in the order of the sockets; an empty one is the socket's name.
        is_log: Whether the axis upwards is logarithmic.

    Returns:
        IMAGE and text.

    Raises:
        ValueError: Nothing is connected, or one is none to sample at.
    """
    lines, said = [], []
    for i, (socket, sigmas) in enumerate(given.items()):
        if sigmas is None:
            continue
        name = plain(names[i].strip() if i < len(names) else "", _NAME) or socket
        try:
            levels = checked(sigmas)
        except ValueError as error:
            raise ValueError(f"{socket}: {error}") from error
        lines.append(Line(name, range(len(levels)), levels))
        said.append(f"{name}: {describe_sigmas(levels)}")
    if not lines:
        raise ValueError("No SIGMAS is connected: connect at least one.")
    image = draw_lines(Lines("Noise level (sigma) by step", lines, "step", is_log))
    return image, "\n".join(said)


def describe_sigmas(levels: Sequence[float]) -> str:
    """How many steps, between which levels."""
    steps = len(levels) - 1
    count = "1 step" if steps == 1 else f"{steps} steps"
    if levels[-1] > 0 or steps == 0:
        return f"{count}, sigma {levels[0]:.4g} to {levels[-1]:.4g}"
    if steps == 1:
        return f"{count}, sigma {levels[0]:.4g} to 0"
    return f"{count}, sigma {levels[0]:.4g} to {levels[-2]:.4g}, then 0"


def plot_steps(recorder: Recorder, latent: Mapping[str, Any]) -> tuple[torch.Tensor, str]:
    """Draw what was recorded of the sampling that a LATENT came of.

    Args:
        recorder: What a recording SAMPLER or a guided MODEL keeps.
        latent: The LATENT.

    Returns:
        IMAGE and text.

    Raises:
        ValueError: Nothing was recorded, or the LATENT has several in one.
    """
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        raise ValueError(
            "This LATENT is several in one (nested, as of models that make pictures and sound), whose steps are not "
            "plotted together. Connect a LATENT of one kind."
        )
    trace, is_its = recorder.of(samples)
    places = list(range(1, len(trace.sigmas) + 1))
    labels = [(place, f"{sigma:.3g}") for place, sigma in zip(places, trace.sigmas, strict=True)]
    lines = [Line(name, places, values) for name, values in trace.lines.items()]
    title = f"{trace.title}, {trace.calls} evaluations"
    image = draw_lines(Lines(title, lines, f"sigma of the {trace.place}", labels=labels))
    said = [f"{trace.steps} steps, {trace.calls} evaluations of the model (NFE)"]
    if not is_its:
        said.append(
            "The LATENT is not what came of the sampler (it was changed since, or packed): this is the newest record."
        )
    for i, (place, sigma) in enumerate(zip(places, trace.sigmas, strict=True)):
        here = {name: values[i] for name, values in trace.lines.items()}
        told = [f"{name} {value:.4g}" for name, value in here.items() if math.isfinite(value)]
        said.append(", ".join([f"{trace.place} {place}: sigma {sigma:.4g}", *told]))
    return image, "\n".join(said)
