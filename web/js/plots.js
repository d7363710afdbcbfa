// SPDX-License-Identifier: Apache-2.0
// Plots in nodes that change while one edits them.

import { app } from "../../../scripts/app.js";
import { ask, onReturn } from "./ask.js";
import { addDisplay, chain, viewScale } from "./display.js";
import { element, setAttributes } from "./dom.js";
import { PLOTS } from "./plots/nodes.js";
import { Surface } from "./surface.js";

const LOOK_EVERY_MS = 300;
const WAIT_MS = 200;
const FAMILY = "graft_family";
const OPEN = "graft_plot_open";
const FOLDED = 22;
const live = new Set();

class NodePlot {
  constructor(node, plot) {
    this.node = node;
    this.plot = plot;
    this.answer = null;
    this.note = "";
    this.turn = 0;
    this.isOpen = true;
    this.surface = new Surface(
      (frame) => this.draw(frame),
      () => viewScale(app),
    );
    this.build();
    this.widget = addDisplay(app, node, "graft_plot", this.root, {
      minHeight: plot.height, minWidth: 300, dispose: () => this.dispose(),
    });
    if (this.widget?.options) this.widget.options.getMinHeight = () => this.height();
    chain(node, "onConfigure", (saved) => this.restore(saved));
    chain(node, "onExecuted", (output) => this.executed(output));
    live.add(this);
  }

  build() {
    this.fold = element("button", {
      class: "graft-plot-fold",
      style: {
        border: "none", background: "none", color: "inherit", font: "11px sans-serif", cursor: "pointer",
        padding: "2px 4px", textAlign: "left", flex: "1 1 auto", whiteSpace: "nowrap", overflow: "hidden",
      },
      attributes: { type: "button" },
      on: { click: () => this.toggle() },
    });
    this.choice = element("select", {
      title: "The kind of model, where none is connected",
      style: {
        display: "none", background: "var(--comfy-input-bg, #222)", color: "inherit", font: "11px sans-serif",
        border: "1px solid var(--border-color, #555)", borderRadius: "4px", maxWidth: "150px",
      },
      attributes: { "aria-label": "Family" },
      on: { change: () => this.choose(this.choice.value) },
    });
    const bar = element("div", { style: { display: "flex", flex: "0 0 20px" } }, this.fold, this.choice);
    this.root = element(
      "div", { class: "graft-plot", style: { color: "var(--input-text, #ddd)" } }, bar, this.surface.box,
    );
    this.label();
  }

  /** What a run found out, for what cannot be asked before it. */
  executed(output) {
    const [ran] = output?.[this.plot.ran] ?? [];
    if (!ran) return;
    this.ran = ran;
    this.forget();
  }

  /** Ask anew, at the next look. */
  forget() {
    this.known = undefined;
  }

  height() {
    return this.isOpen ? this.plot.height : FOLDED;
  }

  label() {
    this.fold.textContent = `${this.isOpen ? "▾" : "▸"} ${this.plot.title}`;
    setAttributes(this.fold, { "aria-expanded": String(this.isOpen) });
  }

  /** Open or folded as the workflow says; one that is saved without the plot has no room for it. */
  restore(saved) {
    const said = saved?.properties?.[OPEN];
    const isTight = Array.isArray(saved?.size) && saved.size[1] + 4 < this.node.computeSize()[1];
    this.setOpen(typeof said === "boolean" ? said : !isTight);
    if (isTight && said !== true) this.node.setSize([...saved.size]);
  }

  toggle() {
    const [width, height] = this.node.size;
    const change = this.plot.height - FOLDED;
    this.setOpen(!this.isOpen);
    this.node.properties ??= {};
    this.node.properties[OPEN] = this.isOpen;
    const least = this.node.computeSize()[1];
    this.node.setSize([width, Math.max(least, height + (this.isOpen ? change : -change))]);
    this.node.setDirtyCanvas?.(true, true);
  }

  setOpen(isOpen) {
    this.isOpen = isOpen;
    this.root.style.minHeight = `${this.height()}px`;
    this.surface.box.style.display = isOpen ? "" : "none";
    this.label();
    this.known = isOpen ? this.known : undefined;
  }

  tick() {
    if (!this.isOpen) return;
    const question = this.plot.question(this.node);
    const key = JSON.stringify(question);
    if (key === this.known) return;
    this.known = key;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load(question), WAIT_MS);
  }

  async load(question) {
    const turn = (this.turn += 1);
    if (!this.answer) this.say("…", false);
    const isAsked = typeof question !== "string";
    if (this.plot.takesFamily) this.showChoice(!isAsked || question.source === "family");
    const answer = isAsked ? await ask(this.plot.route, question) : (this.ran ?? { error: "", note: question });
    if (turn !== this.turn) return;
    const isDrawn = !answer.error && answer.note === undefined;
    this.answer = isDrawn ? answer : null;
    this.say(isDrawn ? "" : (answer.note ?? answer.error), answer.note === undefined);
    this.root.title = isDrawn ? answer.text ?? "" : this.note;
  }

  say(note, isWrong) {
    this.note = note;
    this.isWrong = isWrong;
    this.surface.schedule();
  }

  async showChoice(isShown) {
    this.choice.style.display = isShown ? "" : "none";
    if (!isShown || this.choice.options.length) return;
    const { families = [] } = await ask("blocks/layout", {});
    const rows = [["", "choose a family"], ...families.map((name) => [name, name])];
    this.choice.replaceChildren(...rows.map(([id, text]) => element("option", { text, attributes: { value: id } })));
    this.choice.value = String(this.node.properties?.[FAMILY] ?? "");
  }

  choose(name) {
    this.node.properties ??= {};
    this.node.properties[FAMILY] = name;
    this.tick();
  }

  draw(frame) {
    const ink = getComputedStyle(this.root).color;
    this.fold.style.fontSize = `${Math.round(11 * frame.text)}px`;
    if (this.answer) this.plot.draw(frame, this.answer, ink);
    else if (this.note) drawNote(frame, this.note, this.isWrong ? "#e2574c" : ink);
  }

  dispose() {
    clearTimeout(this.timer);
    this.turn += 1;
    this.surface.dispose();
    live.delete(this);
  }
}

/** Text over several lines, as many as there is room for. */
function drawNote(frame, note, color) {
  const { context, width, height, text } = frame;
  const size = 11 * text;
  context.font = `${size}px sans-serif`;
  context.fillStyle = color;
  context.textBaseline = "top";
  context.textAlign = "left";
  let line = "";
  let y = 6;
  for (const word of note.split(/\s+/)) {
    const longer = line ? `${line} ${word}` : word;
    if (line && context.measureText(longer).width > width - 16) {
      context.fillText(line, 8, y);
      y += 1.3 * size;
      line = word;
    } else line = longer;
    if (y > height - 1.3 * size) return;
  }
  context.fillText(line, 8, y);
}

app.registerExtension({
  name: "graft.plots",
  setup() {
    onReturn(() => live.forEach((plot) => plot.forget()));
    setInterval(() => {
      if (!document.hidden) live.forEach((plot) => plot.tick());
    }, LOOK_EVERY_MS);
  },
  nodeCreated(node) {
    const plot = PLOTS[node.comfyClass];
    if (plot) new NodePlot(node, plot);
  },
});
