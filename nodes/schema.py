# SPDX-License-Identifier: Apache-2.0
"""Schemas for every host version, Graft's wire types, and widgets made from dataclass fields."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..registry import unknown

GraftDataset = io.Custom("GRAFT_DATASET")
GraftNetworkType = io.Custom("GRAFT_NETWORK")
GraftObjectiveType = io.Custom("GRAFT_OBJECTIVE")
GraftOptimizerType = io.Custom("GRAFT_OPTIMIZER")
GraftPreviewType = io.Custom("GRAFT_PREVIEW")
GraftState = io.Custom("GRAFT_STATE")
GraftTokens = io.Custom("GRAFT_TOKENS")
GraftAdapter = io.Custom("GRAFT_ADAPTER")
GraftSteps = io.Custom("GRAFT_STEPS")
GraftGuidanceType = io.Custom("GRAFT_GUIDANCE")
GraftInversionType = io.Custom("GRAFT_INVERSION")
GraftEditsType = io.Custom("GRAFT_EDITS")

# The browser takes 2048 for a number without a maximum.
_MAX_INT = 2**31 - 1
_MAX_FLOAT = 1e9


def make(kind: Any, *args: Any, **values: Any) -> Any:
    """``kind(*args, **values)`` without the keywords that this host's version does not have yet."""
    known = inspect.signature(kind).parameters
    return kind(*args, **{name: value for name, value in values.items() if name in known})


def schema(**values: Any) -> io.Schema:
    """A node's schema; keywords that the host does not know are left out."""
    return make(io.Schema, **values)


def socket(kind: Any, name: str, tooltip: str, **more: Any) -> Any:
    """An input without a widget."""
    return make(kind.Input, name, tooltip=tooltip, **more)


def output(kind: Any, name: str, tooltip: str, **more: Any) -> Any:
    """An output with a name to show.

    It has no id: old hosts refuse an output's id that is an input's, too.
    """
    return make(kind.Output, display_name=name, tooltip=tooltip, **more)


def text(name: str, tooltip: str, default: str = "", **more: Any) -> Any:
    """A text widget."""
    more.setdefault("multiline", False)
    return make(io.String.Input, name, default=default, tooltip=tooltip, **more)


def switch(name: str, tooltip: str, default: bool, **more: Any) -> Any:
    """An on-off widget."""
    return make(io.Boolean.Input, name, default=default, tooltip=tooltip, **more)


def whole(name: str, tooltip: str, default: int, **more: Any) -> Any:
    """A whole-number widget."""
    more.setdefault("max", _MAX_INT)
    return make(io.Int.Input, name, default=default, tooltip=tooltip, **more)


def number(name: str, tooltip: str, default: float, **more: Any) -> Any:
    """A number widget; it is not rounded to its step."""
    limits = {"max": _MAX_FLOAT, "step": 0.01, "round": False}
    return make(io.Float.Input, name, default=default, tooltip=tooltip, **{**limits, **more})


def choice(name: str, tooltip: str, options: Any, default: str | None = None, **more: Any) -> Any:
    """A drop-down widget; the first option is the default when none is given."""
    options = list(options)
    default = default if default in options else options[0] if options else None
    return make(io.Combo.Input, name, options=options, default=default, tooltip=tooltip, **more)


def one_of(name: str, value: str, known: Mapping[str, Any]) -> str:
    """The value of a drop-down widget, which may have come over a link.

    Raises:
        ValueError: It is none of those that are known.
    """
    if value not in known:
        raise ValueError(unknown(name, str(value), known))
    return value


def seed(tooltip: str) -> Any:
    """A seed widget with the control of what happens to it after a run; where the host can, nothing."""
    modes = getattr(io, "ControlAfterGenerate", None)
    control = True if modes is None else modes.fixed
    return whole("seed", tooltip, 0, min=0, max=2**64 - 1, control_after_generate=control)


def field(settings: type, name: str, widget: str = "", **more: Any) -> Any:
    """The widget of a dataclass field: default, tooltip, limits and choices are the field's own.

    Args:
        settings: A dataclass whose fields have a ``tooltip`` in their metadata.
        name: The field.
        widget: Id of the widget; the field's name when empty.
        more: What the widget has beyond the field, or instead of it.
    """
    found = next(f for f in dataclasses.fields(settings) if f.name == name)
    values = {"default": found.default, **found.metadata, **more}
    tooltip, default = values.pop("tooltip"), values.pop("default")
    kind = type(found.default)
    if "choices" in values:
        return choice(widget or name, tooltip, values.pop("choices"), default, **values)
    by_kind: dict[type, Any] = {bool: switch, int: whole, float: number, str: text}
    return by_kind[kind](widget or name, tooltip, default, **values)


def taken(settings: type, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a node's inputs give for the fields of a dataclass that are called alike."""
    return {f.name: inputs[f.name] for f in dataclasses.fields(settings) if f.name in inputs}
