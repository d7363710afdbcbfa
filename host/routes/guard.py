# SPDX-License-Identifier: Apache-2.0
"""What every route of ours asks first: a page of this server, and a small JSON object where there is a body."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

MAX_BODY = 4096
Handler = Callable[[Any], Awaitable[Any]]


class Problem(Exception):
    """A request that is answered by ``{"error": text}``.

    Args:
        status: Of HTTP, 400 to 499.
        text: What came, what is allowed.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def guarded(web: Any, handler: Handler) -> Handler:
    """``handler`` for this server's own pages and for scripts; its ``Problem`` becomes the answer.

    Args:
        web: The module ``aiohttp.web``.
        handler: Of one route.
    """

    async def answer(request: Any) -> Any:
        try:
            if not is_same_origin(request.headers):
                raise Problem(403, "the request comes from a page of another site")
            return await handler(request)
        except Problem as problem:
            return web.json_response({"error": str(problem)}, status=problem.status)

    return answer


async def small_object(request: Any, limit: int = MAX_BODY) -> dict[str, Any]:
    """The body, a small JSON object; no more of it is read than may be there.

    Args:
        request: A POST of aiohttp.
        limit: Bytes.

    Raises:
        Problem: The body is no JSON, no object, packed or larger than ``limit``.
    """
    packed = request.headers.get("Content-Encoding", "identity") != "identity"
    if packed or request.content_type != "application/json":
        raise Problem(415, "Content-Type must be application/json, without a Content-Encoding")
    data = b""
    async for chunk in request.content.iter_chunked(limit):
        data += chunk
        if len(data) > limit:
            raise Problem(413, f"the body must have at most {limit} bytes")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Problem(400, "the body must be a JSON object; {} is one")
    return body


def is_same_origin(headers: Mapping[str, str]) -> bool:
    """Whether a request comes from a page of this server, or from no page at all.

    The host asks this of a server on localhost only, and its older versions not by ``Sec-Fetch-Site``. That header is
    the browser's word, which no page can change; behind a proxy it is right where ``Host`` is another name.

    Args:
        headers: Of the request, whatever their case.
    """
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("Origin")
    if origin is None:
        return True
    try:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and (
            _place(parts.netloc, parts.scheme) == _place(headers.get("Host", ""), parts.scheme)
        )
    except ValueError:  # no port, or no address
        return False


def _place(host: str, scheme: str) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    if not parts.hostname or "@" in host:
        raise ValueError(host)
    return parts.hostname, parts.port or (443 if scheme == "https" else 80)
