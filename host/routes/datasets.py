# SPDX-License-Identifier: Apache-2.0
"""What a browser can ask about a dataset: of what the widgets of nodes name, or of what a node made.

POST /graft/datasets with a plan, ``{"dataset": plan, "fresh": false}``, or with the id of a look, ``{"id": id}``, works
on the look for a moment and says how far it is; then GET /graft/datasets/{id}/pictures?first=0&count=60&only=odd,
/graft/datasets/{id}/pictures/{number} and /graft/datasets/{id}/thumbnails/{number}. A page of another site knows no
id, and cannot post. Folders are those that a node may read.
"""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ..data.look import MOST_ROWS, Gone
from ..data.looks import LOOKS
from ..data.plan import plan_of
from .guard import Problem, guarded, small_object

MAX_BODY = 2**17  # captions for all pictures stand in it
GONE = "no such dataset any more: look again, or run the graph again"
_KEPT = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
T = TypeVar("T")


@functools.cache
def _workers() -> ThreadPoolExecutor:
    """Where pictures are read, so that the server answers others meanwhile."""
    return ThreadPoolExecutor(2, thread_name_prefix="graft-datasets")


async def _work(call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(_workers(), call)


def add(routes: Any, web: Any) -> None:
    """Add the routes of this topic.

    Args:
        routes: The server's table of routes.
        web: The module ``aiohttp.web``.
    """

    async def look(request: Any) -> Any:
        body = await small_object(request, MAX_BODY)
        name, is_fresh = body.get("id"), body.get("fresh", False)
        if name is not None:
            return web.json_response(await _asked(lambda: LOOKS.advance(_id(name))))
        try:
            plan = plan_of(body.get("dataset"))
        except (ValueError, RecursionError) as error:
            raise Problem(400, str(error)) from error
        return web.json_response(
            await _asked(lambda: LOOKS.advance(LOOKS.open(plan, is_fresh is True)))
        )

    async def pictures(request: Any) -> Any:
        name = _id(request.match_info["id"])
        first, count = _number(request.query, "first", 0), _number(request.query, "count", 60)
        only_odd = request.query.get("only") == "odd"
        if count > MOST_ROWS:
            raise Problem(400, f"count is {count}; at most {MOST_ROWS} are shown at once")
        found = await _asked(lambda: _done(name).page(first, count, only_odd))
        return web.json_response(found)

    async def picture(request: Any) -> Any:
        name, index = _id(request.match_info["id"]), _number(request.match_info, "number", 0)
        return web.json_response(await _asked(lambda: _done(name).picture(index)))

    async def thumbnail(request: Any) -> Any:
        name, index = _id(request.match_info["id"]), _number(request.match_info, "number", 0)
        data = await _asked(lambda: LOOKS.thumbnail(name, index))
        return web.Response(body=data, content_type="image/jpeg", headers=_KEPT)

    routes.post("/graft/datasets")(guarded(web, look))
    routes.get("/graft/datasets/{id}/pictures")(guarded(web, pictures))
    routes.get("/graft/datasets/{id}/pictures/{number}")(guarded(web, picture))
    routes.get("/graft/datasets/{id}/thumbnails/{number}")(guarded(web, thumbnail))


async def _asked(call: Callable[[], T]) -> T:
    try:
        return await _work(call)
    except (Gone, IndexError) as error:
        raise Problem(404, GONE) from error


def _done(name: str) -> Any:
    """A look that is done.

    Raises:
        Gone: There is none of that name.
        Problem: It is not done yet.
    """
    look = LOOKS.get(name)
    if not look.is_done:
        raise Problem(409, "the dataset is being read: ask for its pictures later")
    return look


def _id(name: object) -> str:
    if not (isinstance(name, str) and len(name) == 32 and set(name) <= set("0123456789abcdef")):
        raise Problem(404, GONE)
    return name


def _number(given: Any, name: str, default: int) -> int:
    text = given.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Problem(400, f"{name} must be a whole number of 0 or more")
    return int(text)
