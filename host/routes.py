# SPDX-License-Identifier: Apache-2.0
"""What a browser can ask about a run and of it; the answers are JSON.

GET /graft/runs, GET /graft/runs/{id}?since=seq, POST /graft/runs/{id}/finish and /save.
"""

import logging
from typing import Any

from . import paths
from .runs import RUNS, prompt_server

_MARK = "_graft_routes"
_log = logging.getLogger(__name__)


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

    def asking(wish: str) -> Any:
        async def ask(request: Any) -> Any:
            run = request.match_info["run"]
            state = RUNS.ask(run, wish) if paths.is_run_id(run) else None
            if state is None:
                return _problem(web, 404, "no such run")
            if state != "running":
                return _problem(web, 409, f"the run is over: {state}")
            return web.json_response({"run": run, "asked": wish})

        return ask

    routes = server.routes
    routes.get("/graft/runs")(every)
    routes.get("/graft/runs/{run}")(one)
    routes.post("/graft/runs/{run}/finish")(asking("finish"))
    routes.post("/graft/runs/{run}/save")(asking("save"))


def _problem(web: Any, status: int, text: str) -> Any:
    return web.json_response({"error": text}, status=status)
