// SPDX-License-Identifier: Apache-2.0
// What the widgets of dataset nodes name, read from the graph: the plan that the server looks at before any run.

const LOADER = "GraftLoadImages";
/** Nodes that only change what they are given, by their sockets of datasets. */
const CHANGES = {
  GraftCaptions: ["dataset"],
  GraftBuckets: ["dataset"],
  GraftJoinDatasets: ["dataset_1", "dataset_2", "dataset_3", "dataset_4"],
};
const BYPASSED = 4;
const MUTED = 2;
const MOST_DEPTH = 40;

export class Unknown extends Error {}

/**
 * The plan of a node.
 *
 * @param {any} node
 * @param {number} [depth]
 * @returns {object}
 * @throws {Unknown} With the reason why its dataset is known only when the graph was run.
 */
export function planOf(node, depth = 0) {
  if (depth > MOST_DEPTH) throw new Unknown("The nodes go round in a circle.");
  const name = node.comfyClass ?? node.type;
  if (name === LOADER) return { node: name, values: valuesOf(node) };
  const sockets = CHANGES[name];
  if (!sockets) throw new Unknown("This dataset is known when the graph was run.");
  const datasets = sockets.map((socket) => originOf(node, socket)).filter(Boolean);
  if (!datasets.length) throw new Unknown("Connect a dataset to see its pictures.");
  return { node: name, values: valuesOf(node), datasets: datasets.map((one) => planOf(one, depth + 1)) };
}

/** The values of all widgets that are saved; one that a wire sets is known only when the graph runs. */
function valuesOf(node) {
  const values = {};
  for (const widget of node.widgets ?? []) {
    if (widget.serialize === false || widget.options?.serialize === false) continue;
    values[widget.name] = wired(node, widget.name) ?? widget.value;
  }
  return values;
}

function wired(node, name) {
  const input = (node.inputs ?? []).find((one) => one.widget?.name === name);
  const origin = input && linkedNode(node, input);
  if (!origin) return undefined;
  if (origin.type === "PrimitiveNode") return origin.widgets?.[0]?.value;
  throw new Unknown(`${name} comes over a wire: this dataset is known when the graph was run.`);
}

/** The node that gives a socket its dataset, through reroutes and bypassed nodes. */
function originOf(node, socket) {
  let input = (node.inputs ?? []).find((one) => one.name === socket);
  let origin = input && linkedNode(node, input);
  for (let hops = 0; origin && hops < MOST_DEPTH; hops += 1) {
    if (origin.mode === MUTED) return null;
    const passes = origin.type === "Reroute" || origin.mode === BYPASSED;
    if (!passes) return origin;
    input = (origin.inputs ?? []).find((one) => origin.type === "Reroute" || one.type === "GRAFT_DATASET");
    origin = input && linkedNode(origin, input);
  }
  return origin ?? null;
}

function linkedNode(node, input) {
  const { graph } = node;
  if (input.link === null || input.link === undefined || !graph) return null;
  const links = graph.links;
  const link = graph.getLink?.(input.link) ?? links?.get?.(input.link) ?? links?.[input.link];
  if (!link) return null;
  const origin = graph.getNodeById(link.origin_id);
  if (!origin) throw new Unknown("It comes into the subgraph over a wire: it is known when the graph was run.");
  return origin;
}
