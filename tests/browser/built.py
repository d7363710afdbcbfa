# SPDX-License-Identifier: Apache-2.0
"""Small graphs made in the page, node by node."""

from typing import Any

_ADD = """([types, links]) => {
    const graph = app.rootGraph ?? app.graph;
    const nodes = types.map((type, at) => {
        const node = LiteGraph.createNode(type);
        node.pos = [60 + 460 * at, 60];
        graph.add(node);
        return node;
    });
    for (const [from, slot, to, input] of links) nodes[from].connect(slot, nodes[to], input);
    return nodes.map((node) => node.id);
}"""
_ELEMENT = "(id) => (app.rootGraph ?? app.graph).getNodeById(id).widgets.find((w) => w.name === '{}').element"


def add(page: Any, *types: str, links: tuple[tuple[int, int, int, str], ...] = ()) -> list[Any]:
    """Add nodes to the page's graph.

    Args:
        page: A ComfyPage.
        types: Their ids.
        links: From which of them, which output, to which, which input.

    Returns:
        The nodes' ids in the graph.
    """
    made = page.evaluate(_ADD, [list(types), [list(link) for link in links]])
    page.page.wait_for_timeout(300)
    return list(made)


def open_again(page: Any) -> None:
    """Save the graph as a workflow and open that."""
    page.evaluate(
        "async () => { await app.loadGraphData(JSON.parse(JSON.stringify((app.rootGraph ?? app.graph).serialize()))); }"
    )
    page.page.wait_for_timeout(600)


def in_row(page: Any, node: Any, widget: str, code: str) -> Any:
    """Call ``code`` with the element of a node's display row."""
    return page.evaluate(f"(id) => ({code})(({_ELEMENT.format(widget)})(id))", node)
