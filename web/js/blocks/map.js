// SPDX-License-Identifier: Apache-2.0
// A model's blocks as a grid of buttons: a column a block, a row a part. Which are selected is told, not decided here.

import { element, setAttributes, setText } from "../dom.js";

const PARTS = {
  conv: "first convolution",
  res: "residual blocks",
  attn1: "self-attention",
  attn2: "cross-attention, where the text comes in",
  ff: "feed-forward",
  proj: "into and out of the attention",
  down: "halves the latent",
  up: "doubles the latent",
};

/** Styles of the map; `addStyles("graft-blocks", MAP_STYLES)` once. */
export const MAP_STYLES = `
.graft-map { display: flex; flex-wrap: wrap; gap: 12px 18px; align-items: flex-start; }
.graft-map-group { display: grid; gap: 2px; font: 11px sans-serif; }
.graft-map button { border: 1px solid transparent; background: none; color: inherit; font: inherit; padding: 0 2px;
  margin: 0; border-radius: 3px; cursor: pointer; min-width: 0; line-height: 15px; }
.graft-map button:hover, .graft-map button:focus-visible { border-color: currentColor; outline: none; }
.graft-map .graft-map-head { color: var(--descrip-text, #999); text-align: center; }
.graft-map .graft-map-row { color: var(--descrip-text, #999); text-align: right; white-space: nowrap; }
.graft-map .graft-map-cell { min-width: 22px; height: 17px; padding: 0; font-size: 9px; overflow: hidden;
  background: var(--comfy-input-bg, #222); border-color: var(--border-color, #555); }
.graft-map .graft-map-many .graft-map-cell { min-width: 17px; }
.graft-map .graft-map-many { font-size: 10px; gap: 1px; }
.graft-map .graft-map-many .graft-map-head { padding: 0; }
.graft-map .graft-map-names { display: flex; flex-wrap: wrap; max-width: 460px; gap: 3px; }
.graft-map .graft-map-named { padding: 0 6px; font-size: 11px; }
.graft-map .graft-map-cell[data-state="all"] { background: #2f9e62; border-color: #2f9e62; color: #fff; }
.graft-map .graft-map-cell[data-state="some"] { background:
  repeating-linear-gradient(135deg, #2f9e62 0 3px, var(--comfy-input-bg, #222) 3px 6px); border-color: #2f9e62; }
.graft-map .graft-map-cell[data-state="absent"] { opacity: 0.3; cursor: default; border-style: dashed; }
.graft-map.is-hot .graft-map-cell { background: rgba(240, 140, 40, var(--heat, 0)); }
.graft-map.is-hot .graft-map-cell[data-state="all"] { border: 2px solid #2f9e62; color: inherit; }
.graft-map.is-hot .graft-map-cell[data-state="some"] { border: 2px dashed #2f9e62; }
.graft-map.is-off { opacity: 0.45; pointer-events: none; }
`;

/** Blocks beyond which a group's cells are narrow. */
const MANY = 24;

/**
 * @typedef {object} Place
 * @property {string} group
 * @property {string} block Empty for all of the group's.
 * @property {string} part Empty for all of the block's.
 */

export class BlocksMap {
  /**
   * @param {(place: Place) => void} onPick Called with what was clicked.
   */
  constructor(onPick) {
    this.onPick = onPick;
    this.root = element("div", { class: "graft-map" });
    /** @type {Array<{button: any, place: Place, cell: any}>} */
    this.cells = [];
    this.match = null;
    this.sizes = null;
  }

  /**
   * Draw a layout anew.
   *
   * @param {any} layout As the route `blocks/layout` gives it; null empties the map.
   */
  setLayout(layout) {
    this.cells = [];
    this.match = null;
    this.sizes = null;
    this.root.classList.remove("is-hot");
    const groups = (layout?.groups ?? []).map((group) =>
      group.name === "other" ? this.names(group) : this.grid(group),
    );
    this.root.replaceChildren(...groups);
  }

  /**
   * Show what is selected.
   *
   * @param {any} match As the route `blocks/match` gives it.
   */
  setMatch(match) {
    this.match = match;
    this.refresh();
  }

  /**
   * Show |dW| as a colour behind the cells.
   *
   * @param {Array<number | null> | null} sizes One a cell; null for none.
   */
  setHeat(sizes) {
    this.sizes = sizes;
    this.root.classList.toggle("is-hot", Boolean(sizes));
    this.refresh();
  }

  refresh() {
    const { match, sizes } = this;
    const top = Math.max(...(sizes ?? []).map((size) => size ?? 0), 1e-30);
    this.cells.forEach(({ button, place, cell }, at) => {
      const on = match?.on?.[at] ?? 0;
      const of = match?.of?.[at] ?? cell.layers;
      const state = cellState(on, of);
      const size = sizes?.[at];
      setAttributes(button, { "data-state": state, "aria-pressed": String(state === "all") });
      button.style.setProperty("--heat", size ? String(0.08 + (0.92 * size) / top) : "0");
      button.title = cellTitle(place, cell, on, of, size);
      const strength = match?.low && of ? strengthText(match.low[at], match.high[at]) : "";
      setText(button, [button.dataset.label, strength].filter(Boolean).join(" "));
    });
  }

  grid(group) {
    const many = group.blocks.length > MANY ? " graft-map-many" : "";
    const root = element("div", {
      class: `graft-map-group${many}`,
      style: { gridTemplateColumns: `auto repeat(${group.blocks.length}, auto)` },
      attributes: { "data-group": group.name },
    });
    root.append(this.head(group.title, { group: group.name, block: "", part: "" }, group.name));
    for (const block of group.blocks) {
      root.append(this.head(block.label || "·", { group: group.name, block: block.name, part: "" }, block.name));
    }
    for (const part of group.parts) {
      const place = { group: group.name, block: "", part };
      const title = `${partText(part)}, of all of ${group.name}`;
      root.append(this.button("graft-map-row", partLabel(part), place, title));
      for (const block of group.blocks) {
        const cell = block.cells.find((one) => one.part === part);
        root.append(cell ? this.cell({ ...place, block: block.name }, cell) : element("span"));
      }
    }
    this.sort(group);
    return root;
  }

  /** Cells in the layout's order, in which the answers are, and not in that of the rows. */
  sort(group) {
    const start = this.cells.findIndex((one) => one.place.group === group.name);
    const order = group.blocks.flatMap((block) => block.cells);
    const own = this.cells.slice(start).sort((a, b) => order.indexOf(a.cell) - order.indexOf(b.cell));
    this.cells.splice(start, own.length, ...own);
  }

  names(group) {
    const root = element("div", {
      class: "graft-map-group graft-map-names",
      attributes: { "data-group": group.name },
    });
    root.append(this.head(group.title, { group: group.name, block: "", part: "" }, "what is in no block"));
    for (const block of group.blocks) {
      for (const cell of block.cells) {
        const button = this.cell({ group: group.name, block: block.name, part: cell.part }, cell);
        button.classList.add("graft-map-named");
        button.dataset.label = block.label;
        root.append(button);
      }
    }
    return root;
  }

  head(text, place, title) {
    return this.button("graft-map-head", text, place, `all of ${title}`);
  }

  cell(place, cell) {
    const button = this.button("graft-map-cell", "", place, "");
    button.dataset.cell = `${place.block} ${place.part}`;
    this.cells.push({ button, place, cell });
    return button;
  }

  button(name, text, place, title) {
    const made = element("button", { class: name, text, title, attributes: { type: "button" } });
    made.addEventListener("click", () => {
      if (made.dataset.state !== "absent") this.onPick(place);
    });
    return made;
  }
}

/**
 * @param {number} on Layers that are selected.
 * @param {number} of Layers that there are.
 * @returns {"absent" | "all" | "some" | "none"}
 */
export function cellState(on, of) {
  if (!of) return "absent";
  if (on >= of) return "all";
  return on > 0 ? "some" : "none";
}

/**
 * A cell's strength, short: "0.5", or "…" where its layers differ.
 *
 * @param {number | null} low
 * @param {number | null} high
 * @returns {string}
 */
export function strengthText(low, high) {
  if (low === null || low === undefined) return "";
  return low === high ? String(Number(low.toPrecision(2))) : "…";
}

/**
 * The name of a part as a row's label.
 *
 * @param {string} part
 * @returns {string}
 */
export function partLabel(part) {
  return part.replace("_block.", " ").replace("_modulation", "");
}

function partText(part) {
  return PARTS[part] ? `${part}: ${PARTS[part]}` : part;
}

function cellTitle(place, cell, on, of, size) {
  const kinds = [
    cell.linear ? `${cell.linear} linear` : "",
    cell.layers > cell.linear ? `${cell.layers - cell.linear} convolution` : "",
  ].filter(Boolean);
  const lines = [
    `${place.block} · ${partText(place.part)}`,
    `${kinds.join(", ")} layer${cell.layers > 1 ? "s" : ""}, ${cell.channels} channels` +
      (cell.level === null ? "" : `, latent / ${2 ** cell.level}`),
    of ? `${on} of ${of} selected` : "the file has no layer here",
  ];
  if (size !== null && size !== undefined) lines.push(`|dW| ${size.toPrecision(3)}`);
  return [...lines, `click: ${cell.patterns.join(", ")}`].join("\n");
}
