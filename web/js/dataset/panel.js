// SPDX-License-Identifier: Apache-2.0
// The panel of a dataset: a line that says what it holds, buckets, what is wrong, and the pictures. Imports nothing
// of the host; what it needs of it is handed in.

import { DatasetGrid, thumbnail } from "./grid.js";
import { barsOf, counted, factsOf, sizeOf, totalsOf } from "./layout.js";
import { DatasetSource } from "./source.js";
import { addStyles, element, setStyle, setText } from "../dom.js";
import { PANEL_CSS } from "./style.js";

const TICK_MS = 500;
const CLOSED_TEXT = 1.4; // how much larger text can be in one line
const UNKNOWN = "Run the graph to see this dataset.";
const GONE = "This dataset is not kept any more: run the graph again.";

/**
 * @typedef {object} Wanted What a panel is to show.
 * @property {object} [plan] What the widgets of nodes name.
 * @property {Array<{id: string, name: string}>} [made] What the node made, when it ran.
 * @property {string} [why] Why neither is known.
 */

/**
 * @typedef {object} PanelOptions
 * @property {import("./source.js").Ask} ask
 * @property {(path: string) => string} url
 * @property {() => Wanted} wanted Called twice a second while the panel is open.
 * @property {() => number} text Factor of the text's size.
 * @property {(isOpen: boolean) => void} toggled
 * @property {(made: any) => void} gone Called when what the node made is not kept any more.
 */

export class DatasetPanel {
  /** @param {PanelOptions} options */
  constructor(options) {
    addStyles("graft-dataset-panel", PANEL_CSS);
    this.options = options;
    this.source = new DatasetSource(options.ask);
    this.isOpen = false;
    this.shown = "";
    this.chosen = 0;
    this.grid = new DatasetGrid({
      source: this.source, url: options.url, text: options.text, open: (row) => this.open(row),
    });
    this.build();
    this.timer = setInterval(() => this.tick(), TICK_MS);
  }

  build() {
    const button = (name, title, click) =>
      element("button", { class: `graft-set-${name}`, title, attributes: { type: "button" }, on: { click } });
    this.toggle = button("toggle", "Show or hide the pictures", () => this.setOpen(!this.isOpen, true));
    this.refresh = button("refresh", "Look at the files again", () => this.look(true));
    setText(this.refresh, "\u21bb");
    this.choice = element("select", {
      class: "graft-set-choice", title: "Which pictures", on: { change: () => this.choose() },
    });
    this.status = element("div", { class: "graft-set-status", attributes: { role: "status" } });
    this.said = element("div", { class: "graft-set-said", attributes: { "data-capture-wheel": "true" } });
    this.buckets = element("div", { class: "graft-set-buckets", attributes: { "data-capture-wheel": "true" } });
    this.odd = element("input", { attributes: { type: "checkbox" }, on: { change: () => this.filter() } });
    this.oddText = element("span");
    this.filterRow = element("label", { class: "graft-set-filter" }, this.odd, this.oddText);
    this.detail = element("div", { class: "graft-set-detail", attributes: { "data-capture-wheel": "true" } });
    this.body = element(
      "div", { class: "graft-set-body" },
      this.status, this.said, this.buckets, this.filterRow, this.grid.box, this.detail,
    );
    const head = element("div", { class: "graft-set-head" }, this.toggle, this.choice, this.refresh);
    this.root = element("div", { class: "graft-set" }, head, this.body);
    for (const one of [this.refresh, this.toggle, this.choice, this.filterRow, this.detail]) {
      one.addEventListener("pointerdown", (event) => event.stopPropagation());
    }
    this.root.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.detail.childElementCount) this.close(event);
    });
    this.paint();
  }

  /**
   * Show or hide the pictures; nothing is read while they are hidden.
   *
   * @param {boolean} isOpen
   * @param {boolean} [isByUser]
   */
  setOpen(isOpen, isByUser = false) {
    this.isOpen = isOpen;
    this.paint();
    this.tick();
    if (isByUser) this.options.toggled(isOpen);
  }

  /** Stop for good. */
  dispose() {
    clearInterval(this.timer);
    this.source.clear();
    this.grid.dispose();
  }

  /** Look again where what is wanted has changed; the text follows the zoom. */
  tick() {
    if (document.hidden || !this.root.isConnected) return;
    const text = Math.min(this.options.text(), this.isOpen ? Infinity : CLOSED_TEXT);
    if (text !== this.textFactor) {
      this.textFactor = text;
      setStyle(this.root, { "--graft-text": String(text) });
      this.grid.schedule();
    }
    if (!this.isOpen) return;
    const wanted = this.options.wanted();
    const key = JSON.stringify(wanted);
    if (key === this.shown) return;
    // A widget that is being changed is looked at when it rests.
    if (this.shown && wanted.plan && key !== this.resting) {
      this.resting = key;
      return;
    }
    this.shown = key;
    this.wanted = wanted;
    this.chosen = 0;
    this.offer(wanted.made ?? []);
    this.look(false);
  }

  offer(made) {
    this.choice.replaceChildren(
      ...made.map((one, place) => element("option", { text: one.name || "pictures", attributes: { value: place } })),
    );
    this.choice.hidden = made.length < 2;
  }

  choose() {
    this.chosen = Number(this.choice.value);
    this.look(false);
  }

  /** @param {boolean} isFresh Whether files are to be read again. */
  async look(isFresh) {
    const wanted = this.wanted;
    if (!wanted) return;
    this.close();
    const made = wanted.made?.[this.chosen];
    const body = wanted.plan ? { dataset: wanted.plan, fresh: isFresh } : made ? { id: made.id } : null;
    if (!body) {
      this.source.clear();
      this.paint(wanted.why ?? UNKNOWN);
      return;
    }
    this.root.dataset.state = "reading";
    const result = await this.source.look(body, (told) => setText(this.status, progressOf(told)));
    if (result === "dropped") return;
    if (result === "gone" && made) this.options.gone(made);
    this.odd.checked = false;
    this.paint(result === "gone" ? (made ? GONE : "The server does not answer.") : "");
  }

  filter() {
    if (!this.source.summary) return;
    this.source.filter(this.odd.checked);
    this.grid.reset();
  }

  /** @param {string} [text] What is said in place of a dataset. */
  paint(text = "") {
    const { summary } = this.source;
    this.root.dataset.open = String(this.isOpen);
    this.root.dataset.state = summary ? "done" : "none";
    const line = summary && !text ? totalsOf(summary) : "Pictures";
    setText(this.toggle, `${this.isOpen ? "\u25be" : "\u25b8"} ${line}`);
    setText(this.status, text);
    const errors = (summary?.errors ?? []).map((one) => element("p", { class: "graft-set-error", text: one }));
    const facts = summary ? factsOf(summary) : [];
    const notes = [...(summary?.warnings ?? []), ...facts, ...thoroughness(summary)];
    this.said.replaceChildren(...errors, ...notes.map((one) => element("p", { text: one })));
    this.buckets.replaceChildren(...bucketRows(summary?.buckets ?? []));
    this.filterRow.hidden = !summary?.odd;
    setText(this.oddText, summary?.odd ? `problems only (${summary.odd.toLocaleString("en-US")})` : "");
    this.grid.reset();
  }

  /** @param {any} row Of the picture that was clicked. */
  async open(row) {
    const { source } = this;
    const whole = row.row === null ? row : ((await source.picture(row.row)) ?? row);
    const lines = [
      whole.width ? `${whole.width} x ${whole.height} px, trained at ${whole.bucket.join(" x ")}` : "",
      [whole.repeats > 1 ? `${whole.repeats} repeats` : "", whole.weight !== undefined && whole.weight !== 1
        ? `weight ${whole.weight}` : "", whole.label ? `class ${whole.label}` : "", whole.mask ? "with a mask" : "",
      sizeOf(whole.bytes)].filter(Boolean).join(", "),
    ];
    const problems = (whole.problems ?? []).map((one) =>
      element("p", { class: one.is_error ? "graft-set-error" : "graft-set-odd", text: `${one.kind}: ${one.text}` }));
    const texts = (whole.texts ?? []).length ? whole.texts : row.row === null ? [] : ["no caption"];
    const shut = element("button", {
      class: "graft-set-shut", text: "\u00d7", title: "Close (Escape)", attributes: { type: "button" },
      on: { click: (event) => this.close(event) },
    });
    this.detail.replaceChildren(
      shut,
      ...(row.row === null ? [] : [thumbnail(this.options.url(source.thumbnail(row.row)))]),
      element("p", { class: "graft-set-title", text: whole.name }),
      ...lines.filter(Boolean).map((text) => element("p", { text })),
      ...problems,
      ...texts.map((text) => element("p", { class: "graft-set-text", text: text || "(empty)" })),
      ...(whole.more_texts ? [element("p", { text: `and ${counted(whole.more_texts, "text")} more` })] : []),
    );
    shut.focus({ preventScroll: true });
  }

  close(event) {
    event?.stopPropagation();
    this.detail.replaceChildren();
  }
}

function progressOf(told) {
  const doing = told.stage === "reading" ? "reading" : "looking at";
  if (!told.total) return `${doing} the folder ...`;
  return `${doing} ${told.read.toLocaleString("en-US")} of ${counted(told.total, "picture")} ...`;
}

function thoroughness(summary) {
  if (!summary || summary.is_thorough || !summary.pictures) return [];
  return ["So many pictures are not decoded here: damaged and equal ones are found by the run."];
}

function bucketRows(buckets) {
  const bars = barsOf(buckets);
  return buckets.map((bucket, place) =>
    element(
      "div", { class: "graft-set-bucket", title: counted(bucket.pictures, "picture") },
      element("span", { text: `${bucket.width} x ${bucket.height}` }),
      element("span", { class: "graft-set-bar" }, element("span", { style: { width: `${100 * bars[place]}%` } })),
      element("span", { text: String(bucket.pictures) }),
    ),
  );
}
