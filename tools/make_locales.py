# SPDX-License-Identifier: Apache-2.0
"""Writes locales/en/nodeDefs.json from the nodes' schemas: `python -m tools.make_locales`.

The browser takes the English texts from there, too, so the file has to say what the schemas say.
"""

import importlib
import json
from typing import Any

from tests.host import inprocess

PATH = inprocess.ROOT / "locales" / "en" / "nodeDefs.json"


def definitions() -> dict[str, Any]:
    """Return the texts of all nodes as ComfyUI's locale files hold them."""
    inprocess.start()
    from graft.nodes import MODULES

    loaded = [importlib.import_module(f"graft.nodes.{name}") for name in MODULES]
    schemas = [node.GET_SCHEMA() for module in loaded for node in module.NODES]
    return {schema.node_id: _texts(schema) for schema in schemas}


def text(content: dict[str, Any]) -> str:
    """Return the file's text."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _texts(schema: Any) -> dict[str, Any]:
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {
            one.id: {"name": one.display_name or one.id, "tooltip": one.tooltip}
            for one in schema.inputs
        },
        "outputs": {
            str(index): {"name": one.display_name, "tooltip": one.tooltip}
            for index, one in enumerate(schema.outputs)
        },
    }


if __name__ == "__main__":
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(text(definitions()), encoding="utf-8", newline="\n")
    print(f"wrote {PATH}")
