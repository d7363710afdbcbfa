# SPDX-License-Identifier: Apache-2.0
"""What a picture of a model's blocks asks.

POST /graft/blocks/layout, /match, /pick and /heat with a JSON object; nothing is changed by any of them, and POST is
what no other site's page can send. Models and files are names of the host's lists, never paths.
"""

from typing import Any

from ..model import skeleton
from ..studies import block_picker
from .answers import answering, text
from .guard import Problem

_FIELDS = ("source", "name", "kind", "text", "file", "network", "options")


def add(routes: Any, web: Any) -> None:
    """Add the routes of this topic.

    Args:
        routes: The server's table of routes.
        web: The module ``aiohttp.web``.
    """
    for name, answer in (("layout", _layout), ("match", _match), ("pick", _pick), ("heat", _heat)):
        routes.post(f"/graft/blocks/{name}")(answering(web, answer))


def _layout(body: dict[str, Any]) -> dict[str, Any]:
    if not body.get("source"):
        return {"families": list(skeleton.FAMILIES)}
    return block_picker.picture(text(body, "source"), text(body, "name"))


def _match(body: dict[str, Any]) -> dict[str, Any]:
    return block_picker.match(_asked(body))


def _pick(body: dict[str, Any]) -> dict[str, Any]:
    is_on, value = body.get("on"), body.get("value")
    if not (is_on is None or isinstance(is_on, bool)):
        raise Problem(400, "on must be true, false or null")
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise Problem(400, "value must be a number or null")
    place = (text(body, "group"), text(body, "block"), text(body, "part"))
    return block_picker.pick(_asked(body), *place, is_on, value)


def _heat(body: dict[str, Any]) -> dict[str, Any]:
    return block_picker.heat(text(body, "source"), text(body, "name"), text(body, "file"))


def _asked(body: dict[str, Any]) -> block_picker.Asked:
    return block_picker.Asked(**{key: text(body, key) for key in _FIELDS if key in body})
