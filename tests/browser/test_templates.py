# SPDX-License-Identifier: Apache-2.0
"""Every template opens in the page: all its nodes are known, and none lies over another with the panels in them."""

import json

import pytest

from tests.host.inprocess import ROOT

TEMPLATES = sorted((ROOT / "example_workflows").glob("*.json"))
# Pairs of nodes that lie over each other, and types that the page does not know.
LOOK = """() => {
    const nodes = (app.rootGraph ?? app.graph).nodes;
    const box = (node) => [node.pos[0], node.pos[1] - 30, node.pos[0] + node.size[0], node.pos[1] + node.size[1]];
    const found = [];
    nodes.forEach((one, i) => nodes.slice(0, i).forEach((other) => {
        const [a, b] = [box(one), box(other)];
        if (a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]) found.push(`${one.title} over ${other.title}`);
    }));
    const unknown = nodes.filter((node) => !node.constructor.nodeData && !node.isVirtualNode);
    return [found, unknown.map((node) => node.type)];
}"""


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_opens(comfy_page, path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    comfy_page.load(workflow)
    over, unknown = comfy_page.evaluate(LOOK)
    assert not over and not unknown
    assert len(comfy_page.serialized()["nodes"]) == len(workflow["nodes"])
