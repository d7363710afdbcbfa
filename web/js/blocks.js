// SPDX-License-Identifier: Apache-2.0
// The block picker: a row in every node with a text in the block language, and the panel that it opens.

import { app } from "../../../scripts/app.js";
import { ask, onReturn } from "./ask.js";
import { drawMini } from "./blocks/mini.js";
import { BlocksPanel, summary } from "./blocks/panel.js";
import { BlocksState } from "./blocks/state.js";
import { addDisplay, viewScale } from "./display.js";
import { element } from "./dom.js";
import { Surface } from "./surface.js";

const HEIGHT = 52;
const LOOK_EVERY_MS = 300;
const FOLLOW_AFTER_MS = 500;

/** @type {Record<string, import("./blocks/state.js").Field[]>} */
const NODES = {
  GraftTrainLora: [{ widget: "blocks", kind: "blocks", fixed: "lora" }],
  GraftTrainPivotal: [{ widget: "blocks", kind: "blocks", fixed: "lora" }],
  GraftTrainDreamBooth: [{ widget: "blocks", kind: "blocks", fixed: "full" }],
  GraftNetwork: [{ widget: "blocks", kind: "blocks", network: "network", options: "options" }],
  GraftSaveLora: [{ widget: "blocks", kind: "keep" }],
  GraftLoadLoraBlocks: [
    { widget: "blocks", kind: "keep", file: "file", adapter: "adapter" },
    { widget: "strengths", kind: "strengths", file: "file", adapter: "adapter" },
  ],
  GraftLoadAdapter: [{ widget: "strengths", kind: "strengths", file: "file", adapter: "adapter" }],
  GraftMergeLoras: [1, 2, 3, 4].map((n) => ({
    widget: `weights_${n}`, kind: "strengths", file: `file_${n}`, adapter: `adapter_${n}`,
  })),
};
const panel = new BlocksPanel();
const live = new Set();

/** Make the host notice a change that it has no event of, for its own undo and for the copy that it keeps. */
function remember() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  const notice = tracker?.captureCanvasState ?? tracker?.checkState;
  notice?.call(tracker);
}

function addRow(node, fields) {
  const state = new BlocksState(node, fields, ask, () => {
    node.setDirtyCanvas?.(true, true);
    remember();
  });
  const surface = new Surface(
    (frame) => drawRow(frame, state, surface.box),
    () => viewScale(app),
  );
  const root = element(
    "div",
    {
      class: "graft-blocks-row",
      title: "Pick blocks in a picture of the model",
      style: { cursor: "pointer", color: "var(--input-text, #ddd)", padding: "2px 4px" },
      attributes: { role: "button", tabindex: "0", "aria-label": "Pick blocks" },
      on: {
        click: () => panel.open(state, 0, root.getBoundingClientRect()),
        keydown: (event) => {
          if (event.key === "Enter") panel.open(state, 0, root.getBoundingClientRect());
        },
      },
    },
    surface.box,
  );
  state.listeners.add(() => surface.schedule());
  live.add(state);
  addDisplay(app, node, "graft_blocks", root, {
    minHeight: HEIGHT, maxHeight: HEIGHT, minWidth: 260, dispose: () => removeRow(state, surface),
  });
}

function drawRow(frame, state, box) {
  const { context, width, height, text } = frame;
  const ink = getComputedStyle(box).color;
  const line = 12 * text;
  const wrong = state.error || state.matches[0]?.error;
  const none = state.isLoading ? "" : "no model connected";
  const said = state.layout ? `${summary(state, 0)} · ${state.layout.title}` : none;
  context.font = `${11 * text}px sans-serif`;
  context.textBaseline = "top";
  context.fillStyle = wrong ? "#e2574c" : ink;
  context.fillText(said, 2, 1, width - 4);
  context.textAlign = "right";
  context.globalAlpha = 0.7;
  context.fillStyle = ink;
  const label = "pick blocks ▸";
  const both = context.measureText(said).width + context.measureText(label).width;
  if (both + 16 < width) context.fillText(label, width - 2, 1);
  context.globalAlpha = 1;
  context.textAlign = "left";
  context.translate(2, line + 5);
  drawMini({ ...frame, width: width - 4, height: height - line - 7 }, state.layout, state.matches[0], ink);
}

function removeRow(state, surface) {
  state.dispose();
  surface.dispose();
  live.delete(state);
  if (panel.state !== state) return;
  // The host's undo makes all nodes anew: the panel goes on with the one that takes this one's place.
  setTimeout(() => {
    if (panel.state !== state) return;
    const { id, comfyClass } = state.node;
    const next = [...live].find((one) => one.node.id === id && one.node.comfyClass === comfyClass);
    if (next) panel.follow(next);
    else panel.close();
  }, FOLLOW_AFTER_MS);
}

app.registerExtension({
  name: "graft.blocks",
  setup() {
    onReturn(() => live.forEach((state) => state.forget()));
    setInterval(() => {
      if (!document.hidden) live.forEach((state) => state.tick());
    }, LOOK_EVERY_MS);
  },
  nodeCreated(node) {
    const fields = NODES[node.comfyClass];
    if (fields) addRow(node, fields);
  },
});
