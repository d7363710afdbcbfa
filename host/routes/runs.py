# SPDX-License-Identifier: Apache-2.0
"""What a browser can ask about a run and of it.

GET /graft/runs, GET /graft/runs/{id}?since=seq, POST /graft/runs/{id}/finish and /save. POST takes a small JSON
object only: what a form on any page can send is none.
"""

from typing import Any

from ..files import paths
from ..runs.history import RUNS
from .guard import Handler, Problem, guarded, small_object


def add(routes: Any, web: Any) -> None:
    """Add the routes of this topic.

    Args:
        routes: The server's table of routes.
        web: The module ``aiohttp.web``.
    """

    async def every(request: Any) -> Any:
        return web.json_response(RUNS.heads())

    async def one(request: Any) -> Any:
        seq = request.query.get("since", "0")
        if not (seq.isascii() and seq.isdigit() and len(seq) < 16):
            raise Problem(400, "since must be a whole number")
        run = request.match_info["run"]
        found = RUNS.since(run, int(seq)) if paths.is_run_id(run) else None
        if not found:
            raise Problem(404, "no such run")
        return web.json_response(found)

    def asking(wish: str) -> Handler:
        async def ask(request: Any) -> Any:
            await small_object(request)
            run = request.match_info["run"]
            state = RUNS.ask(run, wish) if paths.is_run_id(run) else None
            if state is None:
                raise Problem(404, "no such run")
            if state != "running":
                raise Problem(409, f"the run is over: {state}")
            return web.json_response({"run": run, "asked": wish})

        return ask

    routes.get("/graft/runs")(guarded(web, every))
    routes.get("/graft/runs/{run}")(guarded(web, one))
    routes.post("/graft/runs/{run}/finish")(guarded(web, asking("finish")))
    routes.post("/graft/runs/{run}/save")(guarded(web, asking("save")))
