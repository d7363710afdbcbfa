# SPDX-License-Identifier: Apache-2.0
"""What a browser can ask of the pack, one topic a file; the answers are JSON.

Each topic has ``add(routes, web)``, which wraps every handler by ``guard.guarded``: pages of other sites are turned
away, and what is wrong is answered as ``{"error": text}``.
"""

import logging

from ..runs.history import prompt_server
from . import blocks, datasets, plots, runs

TOPICS = (runs, blocks, plots, datasets)
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

        for topic in TOPICS:
            topic.add(server.routes, web)
    except (ImportError, RuntimeError, AttributeError) as error:
        _log.warning("Graft's routes are not there, the browser shows less of a run: %s", error)
        return False
    setattr(server, _MARK, True)
    return True


__all__ = ["TOPICS", "register"]
