# SPDX-License-Identifier: Apache-2.0
"""The graph's vocabulary: schemas, tooltips and one call each. No tensor maths, no file access."""

import importlib
import logging
from typing import Any

from comfy_api.latest import ComfyExtension, io

from ..host import routes
from ..host.runs import plain_log
from ..host.text import embeddings
from .guard import guarded

MODULES = (
    "mini",
    "dataset",
    "dataset_options",
    "dataset_parts",
    "config",
    "preview",
    "train",
    "recipes",
    "save",
    "state",
    "reports",
    "start",
    "compare",
    "tokens",
    "text_recipes",
    "studies",
    "load",
    "load_b_lora",
    "load_blocks",
    "load_pivotal",
    "b_lora",
    "dreambooth",
    "custom_diffusion",
    "merge_concepts",
    "merge_loras",
    "zip_lora",
    "convert",
    "inspect",
    "samplers",
    "sampling_plots",
    "guidance",
    "editing",
    "ddpm",
)
_log = logging.getLogger(__name__)


class GraftExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node that works on this host; one that does not is logged and left out."""
        plain_log.install()
        routes.register()
        embeddings.register()
        return node_classes()


def node_classes() -> list[type[io.ComfyNode]]:
    """The node classes whose module can be imported and whose schema is valid on this host."""
    found = []
    for name in MODULES:
        for node in _load(name):
            try:
                node.GET_SCHEMA()
            except Exception:  # noqa: BLE001 - one node must not hide the others
                _log.exception("Graft's node %s does not work on this ComfyUI", node.__name__)
            else:
                found.append(guarded(node))
    return found


def _load(name: str) -> list[Any]:
    try:
        return importlib.import_module(f".{name}", __name__).NODES
    except Exception:  # noqa: BLE001 - one module must not hide the others
        _log.exception("Graft's nodes in nodes/%s.py could not be loaded", name)
        return []


__all__ = ["GraftExtension", "node_classes"]
