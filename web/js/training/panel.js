// SPDX-License-Identifier: Apache-2.0
// The panel of a training node: where the run stands, its curves, what it warned of, and what it draws.

import { addStyles, element, setText } from "../dom.js";
import { Chart, nearest } from "../plot/chart.js";
import { eventsOf } from "../runs/record.js";
import { CURVES, pictureOf, Smoothing, validations } from "./curves.js";
import { CSS } from "./look.js";
import { Strip } from "./strip.js";
import { clock, secondsAStep, stateName, values } from "./words.js";

/**
 * @typedef {import("../runs/record.js").RunRecord} RunRecord
 *
 * @typedef {object} PanelOptions
 * @property {(image: any, seq: number, isSmall: boolean) => string} urlOf
 * @property {(run: string, wish: string) => Promise<string>} ask Ask a run to `finish` or to `save`; what to tell.
 * @property {() => number} [scale] Zoom of the graph's view.
 * @property {() => number} [smoothing] Weight of the moving average.
 * @property {(view: {curve: string, isLog: boolean}) => void} [onView]
 */

export class TrainingPanel {
  /** @param {PanelOptions} options */
  constructor(options) {
    addStyles("graft-training", CSS);
    this.options = options;
    /** @type {RunRecord | null} */
    this.record = null;
    this.curve = "loss";
    this.isLog = false;
    this.hover = null;
    this.answer = { text: "", seq: 0 };
    this.isOpen = false;
    this.frame = 0;
    this.smoothing = new Smoothing(options.smoothing ?? (() => 0.9));
    this.chart = new Chart({
      scale: options.scale,
      onHover: (step) => this.point(step),
      onText: (text) => (this.root.style.fontSize = `${11 * text}px`),
      onZoom: () => this.update(),
    });
    this.strip = new Strip(options.urlOf);
    this.root = this.build();
    this.root.panel = this; // for whoever has the element only
    this.paint();
  }

  /** @param {{curve?: string, isLog?: boolean} | undefined} view What the workflow remembers. */
  setView(view) {
    this.curve = CURVES[view?.curve] ? view.curve : "loss";
    this.isLog = Boolean(view?.isLog);
    this.update();
  }

  /**
   * Show a run; call it after each change of it, too.
   *
   * @param {RunRecord | null} record
   */
  show(record) {
    if (record?.run !== this.record?.run || record?.made !== this.shown) {
      this.chart.resetZoom();
      this.answer = { text: "", seq: 0 };
      this.shown = record?.made;
    }
    this.record = record;
    this.update();
  }

  /** Paint before the next frame is shown. */
  update() {
    if (!this.frame) this.frame = requestAnimationFrame(() => this.paint());
  }

  dispose() {
    cancelAnimationFrame(this.frame);
    this.chart.dispose();
  }

  build() {
    this.state = element("span", { class: "graft-state" });
    this.steps = element("span", { class: "graft-steps" });
    this.rest = element("span", { class: "graft-rest" });
    this.done = element("div", {});
    this.line = element("div", { class: "graft-values" });
    this.note = element("div", { class: "graft-note", on: { click: () => this.unfold() } });
    return element("div", { class: "graft-panel" },
      element("div", { class: "graft-head" }, this.state, this.steps, this.rest, ...this.wishes()),
      element("div", { class: "graft-bar" }, this.done),
      this.line,
      this.chart.root,
      this.tools(),
      this.note,
      this.strip.root,
    );
  }

  tools() {
    this.choices = new Map(
      Object.entries(CURVES).map(([name, { label, title }]) => [name, button(label, title, () => this.choose(name))]),
    );
    this.log = button("log", "Logarithmic axis", () => this.toggleLog());
    const again = "All steps again (or click twice); drag in the curve to zoom";
    this.all = button("all", again, () => this.chart.resetZoom());
    return element("div", { class: "graft-tools" }, ...this.choices.values(), gap(), this.log, this.all);
  }

  wishes() {
    const save = "Write a LoRA file of what is learned so far, and go on";
    const finish = "End after this step, and go on with the graph with what is learned";
    this.save = button("Save now", save, () => this.ask("save"), "graft-ask");
    this.finish = button("Finish now", finish, () => this.ask("finish"), "graft-ask");
    return [gap(), this.save, this.finish];
  }

  choose(curve) {
    this.curve = curve;
    this.remember();
  }

  toggleLog() {
    this.isLog = !this.isLog;
    this.remember();
  }

  remember() {
    this.options.onView?.({ curve: this.curve, isLog: this.isLog });
    this.update();
  }

  unfold() {
    if (String(document.getSelection?.() ?? "")) return; // somebody marks the text
    this.isOpen = !this.isOpen;
    this.update();
  }

  point(step) {
    this.hover = step;
    this.update();
  }

  async ask(wish) {
    const { record } = this;
    if (!record) return;
    this.answer = { text: await this.options.ask(record.run, wish), seq: record.seq };
    this.update();
  }

  paint() {
    this.frame = 0;
    const { record } = this;
    const isRunning = record?.state === "running";
    const smooth = record ? this.smoothing.of(record) : [];
    this.root.dataset.state = record?.state ?? "none";
    this.paintHead(record, isRunning);
    this.paintValues(record, smooth);
    this.paintNote(record);
    for (const [name, button] of this.choices) button.setAttribute("aria-pressed", String(name === this.curve));
    this.log.setAttribute("aria-pressed", String(this.isLog));
    this.all.style.display = this.chart.zoomed ? "" : "none";
    this.strip.show(eventsOf(record, "sample"), record?.made ?? 0);
    this.chart.show(pictureOf(record, this.curve, this.isLog, this.smoothing));
  }

  paintHead(record, isRunning) {
    setText(this.state, record ? stateName(record.state) : "not trained yet");
    setText(this.steps, record ? `${record.step.toLocaleString("en")} / ${record.total.toLocaleString("en")}` : "");
    const pace = record ? secondsAStep(record.columns.s_per_step) : null;
    const left = pace && record.total > record.step ? `ETA ${clock((record.total - record.step) * pace)}` : "";
    setText(this.rest, isRunning ? left : "");
    this.save.style.display = this.finish.style.display = isRunning ? "" : "none";
    this.state.title = record ? facts(record) : "";
    const part = record?.total ? Math.min(1, record.step / record.total) : 0;
    this.done.style.width = `${100 * part}%`;
  }

  paintValues(record, smooth) {
    const steps = record?.columns.step ?? [];
    if (!steps.length) {
      this.line.replaceChildren();
      return;
    }
    const at = this.hover === null ? steps.length - 1 : nearest(steps, this.hover);
    const before = validations(record).filter(({ step }) => step <= steps[at]);
    const shown = values(record, smooth, at, before.at(-1));
    if (this.hover !== null) shown.unshift(["step", steps[at].toLocaleString("en")]);
    this.line.replaceChildren(
      ...shown.map(([name, value]) => element("span", {}, `${name} `, element("b", { text: value }))),
    );
  }

  paintNote(record) {
    const warned = eventsOf(record, "warned").map((event) => String(event.text)).reverse();
    const saved = eventsOf(record, "saved").at(-1);
    const isAnswered = record?.state !== "running" || saved?.seq > this.answer.seq;
    const isBad = ["error", "interrupted"].includes(record?.state);
    const lines = [isAnswered ? "" : this.answer.text, isBad ? record.text : "", ...warned].filter(Boolean);
    if (!isBad && record?.text) lines.push(record.text);
    if (saved) lines.push(`saved ${saved.path} (step ${saved.step})`);
    const kind = isBad && record.text ? "error" : warned.length ? "warning" : "plain";
    const count = warned.length > 1 && lines[0] === warned[0] ? `${warned.length} warnings: ` : "";
    this.note.style.display = lines.length ? "" : "none";
    this.note.dataset.kind = kind;
    this.note.dataset.open = String(this.isOpen);
    this.note.title = this.isOpen ? "" : "Click to read all of it";
    setText(this.note, this.isOpen ? lines.join("\n") : `${count}${lines[0]?.split("\n")[0] ?? ""}`);
  }
}

function button(text, title, click, more = "") {
  return element("button", { text, title, class: more, attributes: { type: "button" }, on: { click } });
}

function gap() {
  return element("span", { class: "graft-gap" });
}

function facts(record) {
  return Object.entries(record.facts ?? {})
    .map(([name, value]) => `${name}: ${typeof value === "object" ? JSON.stringify(value) : value}`)
    .join("\n");
}
