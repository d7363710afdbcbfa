// SPDX-License-Identifier: Apache-2.0
// Puts the dataset panel into the nodes that have a dataset.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { DatasetPanel } from "./dataset/panel.js";
import { Unknown, planOf } from "./dataset/plan.js";
import { addDisplay, chain, viewScale } from "./display.js";
import { setStyle } from "./dom.js";
import { textFactor } from "./surface.js";

const NODES = new Set([
  "GraftLoadImages", "GraftImagesToDataset", "GraftCaptions", "GraftBuckets", "GraftDatasetMasks",
  "GraftJoinDatasets", "GraftSplitDataset", "GraftClassImages",
]);
const OPEN_AT_FIRST = "GraftLoadImages";
const PROPERTY = "graft_pictures";
const OUTPUT = "graft_dataset";
const OPEN_PX = 400;
const CLOSED_PX = 24;
const MARGIN_PX = 20; // that the classic renderer takes of a row, above and below

async function ask(path, body) {
  const options = body
    ? { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }
    : {};
  try {
    const answer = await api.fetchApi(path, options);
    if (answer.ok) return await answer.json();
    // What is wrong with a plan is told like what is wrong with a folder.
    const said = answer.status === 400 && body?.dataset ? (await answer.json()).error : null;
    return said ? { done: true, id: null, summary: { pictures: 0, refused: 0, odd: 0, errors: [said] } } : null;
  } catch (error) {
    console.warn("Graft: the server does not answer about a dataset", error);
    return null;
  }
}

/** What nodes made is remembered until the page is closed, as the host forgets it at a reload. */
const memory = {
  key: (node) => `graft.dataset:${(app.rootGraph ?? app.graph)?.id}:${node.graph?.id ?? ""}:${node.id}`,
  get(node) {
    try {
      return JSON.parse(sessionStorage.getItem(this.key(node)) ?? "null");
    } catch {
      return null;
    }
  },
  set(node, made) {
    try {
      if (made) sessionStorage.setItem(this.key(node), JSON.stringify(made));
      else sessionStorage.removeItem(this.key(node));
    } catch {
      // There is no room, or the browser keeps nothing: the panel shows what it knows until a reload.
    }
  },
};

function wantedOf(node) {
  try {
    return { plan: planOf(node) };
  } catch (error) {
    if (!(error instanceof Unknown)) throw error;
    const made = node.graftDataset ?? memory.get(node);
    return made ? { made } : { why: error.message };
  }
}

function addPanel(node) {
  const panel = new DatasetPanel({
    ask,
    url: (path) => api.apiURL(path),
    text: () => textFactor(viewScale(app)),
    wanted: () => wantedOf(node),
    toggled: (isOpen) => {
      node.properties[PROPERTY] = isOpen;
      fit();
      grow(node, isOpen ? OPEN_PX - CLOSED_PX : CLOSED_PX - OPEN_PX);
    },
    gone: () => {
      node.graftDataset = null;
      memory.set(node, null);
    },
  });
  const least = () => (panel.isOpen ? OPEN_PX : CLOSED_PX);
  const widget = addDisplay(app, node, "pictures", panel.root, {
    minHeight: () => least() + MARGIN_PX,
    maxHeight: () => (panel.isOpen ? undefined : CLOSED_PX + MARGIN_PX),
    dispose: () => panel.dispose(),
  });
  const fit = () => {
    setStyle(panel.root, { minHeight: `${least()}px`, height: panel.isOpen ? "100%" : `${CLOSED_PX}px` });
    panel.root.classList.toggle("widget-expands", panel.isOpen);
  };
  if (!widget) return;
  node.graftPictures = panel;
  const isNew = OPEN_AT_FIRST === node.comfyClass;
  panel.setOpen(isNew);
  fit();
  if (isNew) {
    node.properties[PROPERTY] = true;
    grow(node, OPEN_PX - CLOSED_PX);
  }
  chain(node, "onConfigure", (saved) => {
    node.properties[PROPERTY] = saved?.properties?.[PROPERTY] === true;
    panel.setOpen(node.properties[PROPERTY]);
    fit();
  });
}

/** Make a node higher, or lower again, by what its row needs. */
function grow(node, pixels) {
  node.setSize([node.size[0], Math.max(node.computeSize()[1], node.size[1] + pixels)]);
  app.canvas?.setDirty?.(true, true);
}

app.registerExtension({
  name: "graft.dataset",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!NODES.has(nodeData.name)) return;
    chain(nodeType.prototype, "onExecuted", function (output) {
      const made = output?.[OUTPUT];
      if (!Array.isArray(made)) return;
      this.graftDataset = made;
      memory.set(this, made);
      this.graftPictures?.tick();
    });
  },
  nodeCreated(node) {
    if (NODES.has(node.comfyClass)) addPanel(node);
  },
});
