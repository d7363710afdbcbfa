// SPDX-License-Identifier: Apache-2.0
// Nodes of a graph by execution id, through subgraphs.

/**
 * The node that an execution id points at: "12" at the top, "5:12" in the subgraph of node 5.
 *
 * @param {any} graph The root graph.
 * @param {string | null} id
 * @returns {any} The node, null where there is none.
 */
export function nodeByExecutionId(graph, id) {
  let node = null;
  for (const part of String(id ?? "").split(":")) {
    node = graph?.getNodeById?.(/^\d+$/.test(part) ? Number(part) : part) ?? null;
    if (!node) return null;
    graph = node.subgraph;
  }
  return node;
}

/**
 * Every node of a graph and of the subgraphs in it, with its execution id.
 *
 * @param {any} graph
 * @param {string} [prefix]
 * @returns {Array<[string, any]>}
 */
export function everyNode(graph, prefix = "") {
  return (graph?.nodes ?? []).flatMap((node) => {
    const id = `${prefix}${node.id}`;
    return [[id, node], ...(node.subgraph ? everyNode(node.subgraph, `${id}:`) : [])];
  });
}
