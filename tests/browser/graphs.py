# SPDX-License-Identifier: Apache-2.0
"""Small graphs for the page, cut out of the templates."""

import copy
import json
from typing import Any

from tests.host.inprocess import ROOT

MODEL, IMAGES, PREVIEW, TRAIN = 2, 3, 4, 5
WORKFLOW = "7d0f1c52-6f0e-4c1b-9a55-0a3b6a1c9e11"


def training(workflow_id: str = WORKFLOW, note: bool = True) -> dict[str, Any]:
    """graft-mini, its example pictures, a preview and Train LoRA, from the first template."""
    path = ROOT / "example_workflows" / "graft - train a LoRA.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    kept = {MODEL, IMAGES, PREVIEW, TRAIN}
    graph = copy.deepcopy(whole) | {"id": workflow_id, "groups": []}
    graph["links"] = [link for link in whole["links"] if link[1] in kept and link[3] in kept]
    links = {link[0] for link in graph["links"]}
    graph["nodes"] = [node for node in graph["nodes"] if node["id"] in kept]
    for node in graph["nodes"]:
        for output in node["outputs"]:
            output["links"] = [one for one in output["links"] or [] if one in links]
    return graph


def two_trainings() -> dict[str, Any]:
    """The same with a second training node, 15."""
    graph = training()
    train = next(node for node in graph["nodes"] if node["id"] == TRAIN)
    second = copy.deepcopy(train) | {"id": TRAIN + 10, "pos": [1300, 0]}
    for given in second["inputs"]:
        given["link"] = None
    graph["nodes"].append(second)
    graph["last_node_id"] = TRAIN + 10
    return graph
