# SPDX-License-Identifier: Apache-2.0
"""Errors of nodes as the host logs and shows them: what came from a workflow or a file is text in them, in any."""

import functools
from typing import Any

from ..plain import plain_lines


def with_plain_errors(node: Any) -> Any:
    """Have a node's errors name what came without its control characters; the node itself is returned.

    The host writes an error's text into its log as it is, where the end of a line in it would begin a line of the log.
    """
    inner = node.execute.__func__
    if getattr(inner, "has_plain_errors", False):
        return node

    @functools.wraps(inner)
    def execute(cls: Any, *args: Any, **inputs: Any) -> Any:
        try:
            return inner(cls, *args, **inputs)
        except Exception as error:
            if len(error.args) == 1 and isinstance(error.args[0], str):
                error.args = (plain_lines(error.args[0]),)
            raise

    execute.has_plain_errors = True  # type: ignore[attr-defined]
    node.execute = classmethod(execute)
    return node
