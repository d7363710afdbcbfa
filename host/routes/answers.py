# SPDX-License-Identifier: Apache-2.0
"""What routes have in common that answer a question about a model: the body's values, and work beside the server."""

import asyncio
from collections.abc import Callable
from typing import Any

from ..files.reveal import without_places
from .guard import Handler, Problem, guarded, small_object

MAX_BODY = 16_384
MAX_TEXT = 8_000


def text(body: dict[str, Any], key: str, default: str = "") -> str:
    """A text of the body.

    Raises:
        Problem: It is none, or too long.
    """
    value = body.get(key, default)
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise Problem(400, f"{key} must be a text of at most {MAX_TEXT} characters")
    return value


def answering(web: Any, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Handler:
    """A handler of a POST whose answer is worked out in another thread.

    A wrong setting is no failure of the page that asks about it: the answer is ``{"error": text}`` with status 200.

    Args:
        web: The module ``aiohttp.web``.
        answer: Makes the answer of the body; its ValueError, OverflowError and OSError are told without places.
    """

    async def handler(request: Any) -> Any:
        body = await small_object(request, MAX_BODY)
        loop = asyncio.get_running_loop()
        try:
            made = await loop.run_in_executor(None, answer, body)
        except (ValueError, OverflowError) as error:  # the latter of a number that no widget has
            made = {"error": without_places(str(error))}
        except OSError as error:
            made = {"error": f"A file cannot be read: {error.strerror or type(error).__name__}."}
        return web.json_response(made)

    return guarded(web, handler)
