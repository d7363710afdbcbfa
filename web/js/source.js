// SPDX-License-Identifier: Apache-2.0
// Where a node's MODEL comes from, by the links alone: nothing is run.

const INTO_SUBGRAPH = -10; // ids of a subgraph's own two ends
const OUT_OF_SUBGRAPH = -20;
const MOST_STEPS = 100;
const WIDGETS = { ckpt_name: "checkpoint", unet_name: "unet" };
const MINI = "GraftMiniModel";

/**
 * @typedef {object} Source
 * @property {string} source As the server's routes have it: checkpoint, unet or mini.
 * @property {string} name The file; empty for mini.
 */

/**
 * The loader that a node's MODEL comes from: upstream of its own input `model`, of the training node that its adapter
 * is of, or, where it has no such input, of the nodes that it is a setting of.
 *
 * @param {any} node
 * @returns {Source | null} Null where no loader is found that says a file.
 */
export function modelSource(node) {
  const found = upstream(node, new Set());
  // A node with an input for it has that model or none.
  const hasInput = (node.inputs ?? []).some((input) => input.name === "model");
  return found ?? (hasInput ? null : downstream(node, new Set()));
}

function upstream(node, seen) {
  for (let step = 0; node && step < MOST_STEPS; step += 1) {
    if (seen.has(node)) return null;
    seen.add(node);
    const found = told(node);
    if (found) return found;
    const input = wired(node);
    node = input ? origin(node.graph, input.link) : null;
  }
  return null;
}

/** What a loader says of itself. */
function told(node) {
  if ((node.comfyClass ?? node.type) === MINI) return { source: "mini", name: "" };
  for (const widget of node.widgets ?? []) {
    const source = WIDGETS[widget.name];
    if (source && typeof widget.value === "string" && widget.value) return { source, name: widget.value };
  }
  return null;
}

/** The input that leads to the model: `model`, one of its type, an adapter, or that of a reroute. */
function wired(node) {
  const linked = (node.inputs ?? []).filter((input) => input.link !== null && input.link !== undefined);
  return (
    linked.find((input) => input.name === "model") ??
    linked.find((input) => input.type === "MODEL") ??
    linked.find((input) => input.type === "GRAFT_ADAPTER") ??
    (isReroute(node) ? linked[0] : undefined)
  );
}

function isReroute(node) {
  return node.type === "Reroute" || ((node.inputs ?? []).length === 1 && node.isVirtualNode === true);
}

function linkOf(graph, id) {
  return graph?.getLink?.(id) ?? graph?.links?.get?.(id) ?? graph?.links?.[id] ?? null;
}

/** The node that a link begins at, through the ends of subgraphs. */
function origin(graph, id) {
  for (let step = 0; step < MOST_STEPS; step += 1) {
    const link = linkOf(graph, id);
    if (!link) return null;
    if (link.origin_id === INTO_SUBGRAPH) {
      const outer = holder(graph);
      id = outer?.inputs?.[link.origin_slot]?.link;
      graph = outer?.graph;
      continue;
    }
    const node = graph.getNodeById(link.origin_id);
    if (!node?.subgraph) return node ?? null;
    id = node.subgraph.outputs?.[link.origin_slot]?.linkIds?.[0];
    graph = node.subgraph;
  }
  return null;
}

/** The node that a subgraph is the inside of; the first where it is used several times. */
function holder(subgraph) {
  const graphs = [subgraph?.rootGraph];
  for (let at = 0; at < graphs.length && at < MOST_STEPS; at += 1) {
    for (const node of graphs[at]?.nodes ?? []) {
      if (node.subgraph === subgraph) return node;
      if (node.subgraph && !graphs.includes(node.subgraph)) graphs.push(node.subgraph);
    }
  }
  return null;
}

/** For a setting without a model of its own: the model of a node that takes it. */
function downstream(node, seen) {
  if (!node || seen.has(node) || seen.size > MOST_STEPS) return null;
  seen.add(node);
  for (const [graph, link] of leaving(node)) {
    const target = link.target_id === OUT_OF_SUBGRAPH ? null : graph.getNodeById(link.target_id);
    if (!target) continue;
    const found = upstream(target, new Set([node])) ?? downstream(target, seen);
    if (found) return found;
  }
  return null;
}

function leaving(node) {
  const ids = (node.outputs ?? []).flatMap((output) => output.links ?? []);
  return ids.flatMap((id) => {
    const link = linkOf(node.graph, id);
    if (!link) return [];
    if (link.target_id !== OUT_OF_SUBGRAPH) return [[node.graph, link]];
    const outer = holder(node.graph);
    const more = outer?.outputs?.[link.target_slot]?.links ?? [];
    return more.map((outside) => [outer.graph, linkOf(outer.graph, outside)]).filter(([, one]) => one);
  });
}
