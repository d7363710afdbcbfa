// SPDX-License-Identifier: Apache-2.0
// The panel to pick blocks in: a picture of the model beside the graph, and the text that it writes.

import { BlocksMap, MAP_STYLES } from "./map.js";
import { addStyles, element, setAttributes, setText } from "../dom.js";

const STYLES = `${MAP_STYLES}
.graft-picker { position: fixed; right: 24px; top: 96px; z-index: 1100; width: fit-content; max-width: min(960px, 94vw);
  min-width: 380px; max-height: 82vh; display: flex; flex-direction: column; box-sizing: border-box;
  background: var(--comfy-menu-bg, #2a2a2a); color: var(--input-text, #ddd); font: 12px sans-serif;
  border: 1px solid var(--border-color, #555); border-radius: 8px; box-shadow: 0 6px 24px rgba(0, 0, 0, 0.45); }
.graft-picker[hidden] { display: none; }
.graft-picker-bar { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; padding: 6px 12px; }
.graft-picker-top { cursor: move; padding: 8px 8px 6px 12px; border-bottom: 1px solid var(--border-color, #555);
  flex-wrap: nowrap; touch-action: none; user-select: none; }
.graft-picker-title { font-weight: 600; flex: 1 1 auto; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.graft-picker-button, .graft-picker select, .graft-picker input { background: var(--comfy-input-bg, #222);
  color: var(--input-text, #ddd); border: 1px solid var(--border-color, #555); border-radius: 4px; padding: 2px 8px;
  font: 12px sans-serif; }
.graft-picker-button { cursor: pointer; }
.graft-picker-button:hover, .graft-picker-button:focus-visible { border-color: currentColor; outline: none; }
.graft-picker-button:disabled { opacity: 0.4; cursor: default; }
.graft-picker-button[aria-pressed="true"] { background: #2f9e62; border-color: #2f9e62; color: #fff; }
.graft-picker-text { flex: 1 1 240px; min-width: 0; font-family: ui-monospace, monospace; padding: 4px 8px; }
.graft-picker-body { overflow: auto; padding: 8px 12px; min-height: 40px; }
.graft-picker-foot { padding: 6px 12px 10px; min-height: 30px; overflow-wrap: anywhere; max-width: 720px; }
.graft-picker-foot.is-wrong { color: var(--error-text, #f55); }
`;
const STRENGTHS = "strengths";
const HINT =
  "Click a cell, a block's number, a part's name or a group to select or leave out. Shift-click a preset to add it.";

export class BlocksPanel {
  constructor() {
    this.state = null;
    this.at = 0;
    this.isHot = false;
    this.update = () => this.refresh();
  }

  /**
   * Show the blocks of a node, and write to its field `at`.
   *
   * @param {any} state A BlocksState.
   * @param {number} [at]
   * @param {DOMRect} [row] Of the node, which the panel stays clear of.
   */
  open(state, at = 0, row = undefined) {
    if (!this.root) this.build();
    if (row && this.root.hidden) placeBeside(this.root, row);
    this.state?.listeners.delete(this.update);
    this.state = state;
    this.at = Math.min(at, state.fields.length - 1);
    this.isHot = false;
    this.drawn = null;
    state.listeners.add(this.update);
    this.root.hidden = false;
    this.refresh();
  }

  /** Go on with another state of the same node, which was made anew. */
  follow(state) {
    const { isHot } = this;
    this.open(state, this.at);
    this.isHot = isHot;
    if (isHot) state.heat(this.at, true);
  }

  close() {
    this.state?.listeners.delete(this.update);
    this.state = null;
    if (this.root) this.root.hidden = true;
  }

  build() {
    addStyles("graft-blocks", STYLES);
    this.map = new BlocksMap((place) => this.pick(place));
    this.title = element("span", { class: "graft-picker-title" });
    const shut = this.button("✕", "Close (Esc)", () => this.close());
    const top = element("div", { class: "graft-picker-bar graft-picker-top" }, this.title, shut);
    this.fieldChoice = this.choice("Which text of the node", (value) => this.setField(Number(value)));
    this.familyChoice = this.choice("The kind of model, where none is connected", (value) =>
      this.state?.setFamily(value),
    );
    this.presets = element("span", { style: { display: "contents" } });
    const bar = element("div", { class: "graft-picker-bar" }, this.fieldChoice, this.familyChoice, this.presets);
    this.foot = element("div", { class: "graft-picker-foot", attributes: { role: "status" } });
    const body = element("div", { class: "graft-picker-body", attributes: { "data-capture-wheel": "true" } });
    body.append(this.map.root);
    this.root = element(
      "div",
      { class: "graft-picker", attributes: { role: "dialog", "aria-label": "Blocks of the model" } },
      top, bar, this.textBar(), body, this.foot,
    );
    this.root.hidden = true;
    this.root.addEventListener("keydown", (event) => this.key(event));
    makeMovable(this.root, top);
    document.body.append(this.root);
  }

  textBar() {
    this.text = element("input", {
      class: "graft-picker-text",
      title: "The same text as in the node: presets, patterns, -patterns to leave out",
      attributes: { type: "text", spellcheck: "false", "aria-label": "Selection" },
      on: { change: () => this.write(this.text.value) },
    });
    this.value = element("input", {
      title: "The strength that a click gives",
      style: { width: "62px" },
      attributes: { type: "number", step: "0.05", value: "1", "aria-label": "Strength" },
    });
    this.undoButton = this.button("Undo", "Take the last change back", () => this.state.undo(this.at));
    this.clearButton = this.button("Clear", "Empty the text", () => this.write(""));
    const about = "Colour the cells by how much the file changes them";
    this.heatButton = this.button("|dW|", about, () => this.toggleHeat());
    return element(
      "div", { class: "graft-picker-bar" },
      this.text, this.value, this.heatButton, this.undoButton, this.clearButton,
    );
  }

  button(text, title, action) {
    const made = element("button", {
      class: "graft-picker-button", text, title, attributes: { type: "button" }, on: { click: action },
    });
    return made;
  }

  choice(title, action) {
    const on = { change: (event) => action(event.target.value) };
    return element("select", { title, attributes: { "aria-label": title }, on });
  }

  key(event) {
    if (event.key === "Escape") this.close();
    // The graph has keys of its own, such as one that removes nodes; those with Ctrl (undo) are left to it.
    if (!(event.ctrlKey || event.metaKey) || event.target === this.text) event.stopPropagation();
  }

  setField(at) {
    this.at = at;
    if (this.isHot) this.state.heat(at, true);
    this.refresh();
  }

  pick(place) {
    const { state, at } = this;
    const value = Number.parseFloat(this.value.value);
    const match = state.matches[at];
    const given = Number.isFinite(value) ? value : 1;
    const isSame = this.isStrengths() && match && this.strengthAt(place, match) === given;
    state.pick(at, place, this.isStrengths() && !isSame ? given : null);
  }

  /** The one strength of all cells of a place; null where they differ or nothing is said of them. */
  strengthAt(place, match) {
    const found = new Set();
    this.map.cells.forEach((one, at) => {
      const isThere = ["group", "block", "part"].every((key) => !place[key] || one.place[key] === place[key]);
      if (isThere && match.of[at]) found.add(match.low[at]).add(match.high[at]);
    });
    const isSaid = this.state.text(this.at).includes("=");
    return isSaid && found.size === 1 ? [...found][0] : null;
  }

  isStrengths() {
    return this.state?.fields[this.at].kind === STRENGTHS;
  }

  preset(name, isAdded) {
    const before = this.state.text(this.at).trim();
    if (!this.isStrengths()) {
      this.write(isAdded && before ? `${before.replace(/,\s*$/, "")}, ${name}` : name);
      return;
    }
    const value = Number.parseFloat(this.value.value);
    const kept = before.split(/[;,\n]/).map((pair) => pair.trim());
    const others = kept.filter((pair) => pair && pair.slice(0, pair.lastIndexOf("=")).trim() !== name);
    this.write([...others, `${name}=${Number.isFinite(value) ? value : 1}`].join("; "));
  }

  write(text) {
    this.state?.write(this.at, text);
  }

  toggleHeat() {
    this.isHot = !this.isHot;
    this.state.heat(this.at, this.isHot);
    if (this.isHot) setText(this.foot, "Measuring |dW| …");
  }

  refresh() {
    const { state, at } = this;
    if (!state) return;
    const { layout } = state;
    const match = state.matches[at];
    if (this.drawn !== layout) {
      this.drawn = layout;
      this.map.setLayout(layout);
    }
    const source = state.source();
    const from = source && source.source !== "family" ? ` of ${source.name || "graft-mini"}` : "";
    const said = layout ? `${layout.title}${from}, ${layout.layers} layers` : "no layout";
    setText(this.title, `Blocks for ${state.node.title ?? "the node"}: ${said}`);
    this.refreshBars(state, at);
    this.map.root.classList.toggle("is-off", !match || state.isLinked(at));
    this.map.setMatch(match);
    this.map.setHeat(this.isHot ? state.heats[at] : null);
    const wrong = state.error || match?.error || "";
    this.foot.classList.toggle("is-wrong", Boolean(wrong));
    const linked = state.isLinked(at) ? "The text comes over a link. " : "";
    setText(this.foot, wrong || `${linked}${match ? summary(state, at) : ""}. ${HINT}`);
  }

  refreshBars(state, at) {
    const isStrengths = this.isStrengths();
    if (document.activeElement !== this.text || this.text.value === "") this.text.value = state.text(at);
    setAttributes(this.text, { readonly: state.isLinked(at) });
    this.value.hidden = !isStrengths;
    this.heatButton.hidden = !state.file(at);
    setAttributes(this.heatButton, { "aria-pressed": String(this.isHot) });
    this.undoButton.disabled = !state.undone[at].length;
    fill(this.fieldChoice, state.fields.map((field, place) => [String(place), field.widget]), String(at));
    this.fieldChoice.hidden = state.fields.length < 2;
    const source = state.source();
    const needsFamily = !source || source.source === "family" || !state.layout;
    this.familyChoice.hidden = !needsFamily;
    if (needsFamily) this.fillFamilies(state);
    const names = state.layout?.presets ?? [];
    if (this.named === names.join()) return;
    this.named = names.join();
    this.presets.replaceChildren(
      ...names.map((name) => {
        const button = this.button(name, `Select ${name}; with Shift, add it`, () => {});
        button.addEventListener("click", (event) => this.preset(name, event.shiftKey));
        return button;
      }),
    );
  }

  async fillFamilies(state) {
    this.families ??= state.ask("blocks/layout", {});
    const { families = [] } = await this.families;
    if (!families.length) this.families = undefined;
    const rows = [["", "choose a family"], ...families.map((name) => [name, name])];
    if (this.state === state) fill(this.familyChoice, rows, state.family());
  }
}

/**
 * What a field selects, in words.
 *
 * @param {any} state A BlocksState.
 * @param {number} at
 * @returns {string}
 */
export function summary(state, at) {
  const match = state.matches[at];
  if (!match) return state.isLoading ? "…" : "";
  if (match.error) return "selects nothing";
  const { kind } = state.fields[at];
  if (kind === STRENGTHS) return state.text(at).trim() ? "strengths by block" : "one strength for all";
  if (kind === "keep" && !state.file(at)) {
    if (!state.text(at).trim()) return "all that was trained";
    return `${match.layers} layers of the model, as far as they were trained`;
  }
  return `${match.layers} of ${match.all} layers`;
}

function fill(select, rows, value) {
  const key = JSON.stringify(rows);
  if (select.dataset.rows !== key) {
    select.dataset.rows = key;
    select.replaceChildren(...rows.map(([id, text]) => element("option", { text, attributes: { value: id } })));
  }
  select.value = value;
}

/** Put the panel on the side of the window that a node is not on. */
function placeBeside(root, row) {
  const isRight = row.left + row.width / 2 > innerWidth / 2;
  Object.assign(root.style, { left: isRight ? "84px" : "auto", right: isRight ? "auto" : "24px", top: "96px" });
}

/** Let the pointer move `root` by `handle`, inside of the window. */
function makeMovable(root, handle) {
  let from = null;
  handle.addEventListener("pointerdown", (event) => {
    if (event.target.closest("button")) return;
    const box = root.getBoundingClientRect();
    from = [event.clientX - box.left, event.clientY - box.top];
    handle.setPointerCapture(event.pointerId);
  });
  handle.addEventListener("pointermove", (event) => {
    if (!from) return;
    const left = Math.max(0, Math.min(innerWidth - 80, event.clientX - from[0]));
    const top = Math.max(0, Math.min(innerHeight - 40, event.clientY - from[1]));
    Object.assign(root.style, { left: `${left}px`, top: `${top}px`, right: "auto" });
  });
  handle.addEventListener("pointerup", () => {
    from = null;
  });
}
