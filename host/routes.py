# SPDX-License-Identifier: Apache-2.0
"""What a browser can ask about a run and of it; the answers are JSON.

GET /graft/runs, GET /graft/runs/{id}?since=seq, POST /graft/runs/{id}/finish and /save. Pages of other sites are
turned away, and POST takes a small JSON object only: what a form on any page can send is none.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from .files import paths
from .runs.history import RUNS, prompt_server

MAX_BODY = 4096
_MARK = "_graft_routes"
_log = logging.getLogger(__name__)
Handler = Callable[[Any], Awaitable[Any]]


def register() -> bool:
    """Add the routes to the host's server, once.

    Call it while the pack is imported: the server takes routes up after that.

    Returns:
        Whether the server has the routes; False where there is no server.
    """
    server = prompt_server()
    if server is None:
        return False
    if getattr(server, _MARK, False):
        return True
    try:
        from aiohttp import web

        _add(server, web)
    except (ImportError, RuntimeError, AttributeError) as error:
        _log.warning("Graft's routes are not there, the browser shows less of a run: %s", error)
        return False
    setattr(server, _MARK, True)
    return True


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


def _add(server: Any, web: Any) -> None:
    async def every(request: Any) -> Any:
        return web.json_response(RUNS.heads())

    async def one(request: Any) -> Any:
        seq = request.query.get("since", "0")
        if not (seq.isascii() and seq.isdigit() and len(seq) < 16):
            return _problem(web, 400, "since must be a whole number")
        run = request.match_info["run"]
        found = RUNS.since(run, int(seq)) if paths.is_run_id(run) else None
        return web.json_response(found) if found else _problem(web, 404, "no such run")

    def asking(wish: str) -> Handler:
        async def ask(request: Any) -> Any:
            wrong = await _wrong_body(request)
            if wrong:
                return _problem(web, *wrong)
            run = request.match_info["run"]
            state = RUNS.ask(run, wish) if paths.is_run_id(run) else None
            if state is None:
                return _problem(web, 404, "no such run")
            if state != "running":
                return _problem(web, 409, f"the run is over: {state}")
            return web.json_response({"run": run, "asked": wish})

        return ask

    routes = server.routes
    routes.get("/graft/runs")(_guarded(web, every))
    routes.get("/graft/runs/{run}")(_guarded(web, one))
    routes.post("/graft/runs/{run}/finish")(_guarded(web, asking("finish")))
    routes.post("/graft/runs/{run}/save")(_guarded(web, asking("save")))


def _guarded(web: Any, handler: Handler) -> Handler:
    async def guarded(request: Any) -> Any:
        if not is_same_origin(request.headers):
            return _problem(web, 403, "the request comes from a page of another site")
        return await handler(request)

    return guarded


async def _wrong_body(request: Any) -> tuple[int, str] | None:
    """Status and text for a body that is no small JSON object; no more of it is read than may be there."""
    packed = request.headers.get("Content-Encoding", "identity") != "identity"
    if packed or request.content_type != "application/json":
        return 415, "Content-Type must be application/json, without a Content-Encoding"
    data = b""
    async for chunk in request.content.iter_chunked(MAX_BODY):
        data += chunk
        if len(data) > MAX_BODY:
            return 413, f"the body must have at most {MAX_BODY} bytes"
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    return None if isinstance(body, dict) else (400, "the body must be a JSON object; {} is one")


def _problem(web: Any, status: int, text: str) -> Any:
    return web.json_response({"error": text}, status=status)
