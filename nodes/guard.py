# SPDX-License-Identifier: Apache-2.0
"""What holds for every node: numbers are within the limits of their widgets, and errors are text and no more.

The host checks the limits of widgets, but not what comes over a link; and it writes an error's text into its log as it
is, where the end of a line in it would begin a line of the log.
"""

import functools
import math
from typing import Any

from ..plain import plain_lines


def guarded(node: Any) -> Any:
    """The node, changed: what it executes is looked at before and after."""
    inner = node.execute.__func__
    if getattr(inner, "is_guarded", False):
        return node
    limits = {one.id: one for one in node.GET_SCHEMA().inputs if hasattr(one, "max")}

    @functools.wraps(inner)
    def execute(cls: Any, *args: Any, **inputs: Any) -> Any:
        try:
            for name in limits.keys() & inputs.keys():
                for value in inputs[name] if isinstance(inputs[name], list) else [inputs[name]]:
                    _check(name, value, limits[name].min, limits[name].max)
            return inner(cls, *args, **inputs)
        except Exception as error:
            if len(error.args) == 1 and isinstance(error.args[0], str):
                error.args = (plain_lines(error.args[0]),)
            raise

    execute.is_guarded = True  # type: ignore[attr-defined]
    node.execute = classmethod(execute)
    return node


def _check(name: str, value: Any, low: Any, high: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; it must be a finite number.")
    if not isinstance(value, int | float):
        return
    if (low is not None and value < low) or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"at most {high}"
        if low is not None and high is not None:
            allowed = f"between {low} and {high}"
        raise ValueError(f"{name} is {value}; it must be {allowed}.")
