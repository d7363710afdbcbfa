// SPDX-License-Identifier: Apache-2.0
// The live panel of the training nodes: binds runs to nodes, through reloads, other workflows and subgraphs.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { addDisplay, chain, viewScale } from "./display.js";
import { everyNode, nodeByExecutionId } from "./graph.js";
import { chooseRuns, RunClient } from "./runs/client.js";
import { TrainingPanel } from "./training/panel.js";

const EVENT = "graft.run";
const REMEMBERED = "graft_run"; // in node.properties, so in the workflow
const VIEW = "graft_view";
const SMOOTHING = "Graft.Training.Smoothing";
const PANELS = new WeakMap();

let isReady = false; // the host logs an error when its graph is asked for too early

const root = () => (isReady ? (app.rootGraph ?? app.graph) : null);
const client = new RunClient({ run: askRun, heads: askHeads }, show);

async function askRun(run, since) {
  try {
    const answer = await api.fetchApi(`/graft/runs/${encodeURIComponent(run)}?since=${since}`);
    return { status: answer.status, body: answer.ok ? await answer.json() : null };
  } catch {
    return { status: 0, body: null }; // the server is away; "reconnected" asks again
  }
}

async function askHeads() {
  try {
    const answer = await api.fetchApi("/graft/runs");
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

/** Ask a run to finish or to save; what to tell the user. */
async function ask(run, wish) {
  try {
    const given = { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" };
    const answer = await api.fetchApi(`/graft/runs/${encodeURIComponent(run)}/${wish}`, given);
    if (answer.ok) return wish === "finish" ? "It ends after this step." : "It is saved after this step.";
    const { error } = await answer.json();
    return String(error);
  } catch {
    return "The server does not answer.";
  }
}

function urlOf({ filename = "", subfolder = "", type = "output" }, seq, isSmall) {
  const small = isSmall ? { preview: "webp;85" } : {};
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type, ...small, v: String(seq) })}`);
}

/** The node that a run belongs to, null where this workflow has it not. */
function nodeOf(node, workflow) {
  const graph = root();
  if (!graph || (workflow && graph.id && workflow !== graph.id)) return null;
  const found = nodeByExecutionId(graph, node);
  return found && PANELS.has(found) ? found : null;
}

function show(record) {
  const node = nodeOf(record.node, record.workflow);
  if (!node) return;
  remember(node, record.run);
  PANELS.get(node).show(record);
}

function remember(node, run) {
  if (node.properties[REMEMBERED] === run) return;
  node.properties[REMEMBERED] = run;
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  if (tracker?.captureCanvasState) tracker.captureCanvasState(); // the copy that a reload brings back
  else tracker?.checkState?.();
}

/** After a page load, another workflow or a lost connection: each node gets its run, and what it missed of it. */
async function resync() {
  const graph = root();
  const nodes = everyNode(graph).filter(([, node]) => PANELS.has(node));
  if (!nodes.length) return;
  const heads = (await askHeads()) ?? [];
  const known = nodes.map(([key, node]) => ({ key, remembered: node.properties?.[REMEMBERED] ?? null }));
  const keyOf = (head) => (nodeOf(head.node, head.workflow_id) ? String(head.node) : null);
  const chosen = chooseRuns(known, heads, keyOf);
  await Promise.all(nodes.map(async ([key, node]) => {
    const record = chosen.has(key) ? await client.fetch(chosen.get(key)) : null;
    if (record && PANELS.has(node)) PANELS.get(node).show(record);
  }));
}

/** Whether a node trains: it hands over a state and a map of losses. */
function trains(node) {
  const outputs = new Set((node.outputs ?? []).map((output) => output.type));
  return String(node.comfyClass ?? "").startsWith("Graft") && outputs.has("GRAFT_STATE") && outputs.has("LOSS_MAP");
}

function addPanel(node) {
  const panel = new TrainingPanel({
    urlOf,
    ask,
    scale: () => viewScale(app),
    smoothing: () => app.extensionManager?.setting?.get(SMOOTHING) ?? 0.9,
    onView: (view) => (node.properties[VIEW] = view),
  });
  const options = { minHeight: 340, minWidth: 380, dispose: () => panel.dispose() };
  if (!addDisplay(app, node, "training", panel.root, options)) return;
  PANELS.set(node, panel);
  // A node that is pasted or moved into a subgraph: nobody else tells of it.
  chain(node, "onConfigure", () => {
    panel.setView(node.properties?.[VIEW]);
    const known = client.get(node.properties?.[REMEMBERED] ?? "");
    if (known) panel.show(known);
  });
}

api.addEventListener(EVENT, ({ detail }) => void client.take(detail)); // early, so that the type is known

app.registerExtension({
  name: "graft.training",
  settings: [
    {
      id: SMOOTHING,
      category: ["Graft", "Training", "Smoothing"],
      name: "Smoothing of the curves",
      tooltip: "How much of the bold line is what was before; 0 smooths nothing.",
      type: "slider",
      defaultValue: 0.9,
      attrs: { min: 0, max: 0.99, step: 0.01 },
      onChange: () => everyNode(root()).forEach(([, node]) => PANELS.get(node)?.update()),
    },
  ],
  setup() {
    isReady = true;
    api.addEventListener("reconnected", () => void resync());
  },
  afterConfigureGraph() {
    isReady = true;
    return resync();
  },
  nodeCreated(node) {
    if (trains(node)) addPanel(node);
  },
});
