# SPDX-License-Identifier: Apache-2.0
"""What the plots of nodes ask while one edits.

POST /graft/plots/objective and /schedule with ``widgets`` and where the MODEL comes from, /overlap with ``files``.
"""

from typing import Any

from ..studies import live_plots
from ..studies.live_plots import ObjectiveWidgets, ScheduleWidgets
from .answers import answering, text
from .guard import Problem


def add(routes: Any, web: Any) -> None:
    """Add the routes of this topic.

    Args:
        routes: The server's table of routes.
        web: The module ``aiohttp.web``.
    """
    answers = (("objective", _objective), ("schedule", _schedule), ("overlap", _overlap))
    for name, answer in answers:
        routes.post(f"/graft/plots/{name}")(answering(web, answer))


def _objective(body: dict[str, Any]) -> dict[str, Any]:
    widgets = live_plots.widgets_of(ObjectiveWidgets, _widgets(body))
    return live_plots.objective(widgets, text(body, "source"), text(body, "name"))


def _schedule(body: dict[str, Any]) -> dict[str, Any]:
    widgets = live_plots.widgets_of(ScheduleWidgets, _widgets(body))
    return live_plots.schedule(widgets, text(body, "source"), text(body, "name"))


def _overlap(body: dict[str, Any]) -> dict[str, Any]:
    files = body.get("files")
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise Problem(400, "files must be a list of names")
    return live_plots.overlap(files, text(body, "source"), text(body, "name"))


def _widgets(body: dict[str, Any]) -> dict[str, Any]:
    values = body.get("widgets")
    if not isinstance(values, dict):
        raise Problem(400, "widgets must be an object")
    return values
