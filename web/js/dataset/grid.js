// SPDX-License-Identifier: Apache-2.0
// A grid of thumbnails that scrolls itself; only what is seen is in the page, however many pictures there are.

import { PAGE } from "./source.js";
import { GAP_PX, gridOf, pagesOf, seenOf } from "./layout.js";
import { element, setStyle } from "../dom.js";

/**
 * @typedef {object} GridOptions
 * @property {import("./source.js").DatasetSource} source
 * @property {(path: string) => string} url The address of a path on the server.
 * @property {() => number} text Factor of the text's size.
 * @property {(row: any) => void} open Called when a picture is clicked.
 */

export class DatasetGrid {
  /** @param {GridOptions} options */
  constructor(options) {
    this.options = options;
    this.cells = new Map();
    this.frame = 0;
    this.sheet = element("div", { class: "graft-set-sheet" });
    /** The element to place. */
    this.box = element(
      "div",
      {
        class: "graft-set-grid",
        attributes: { "data-capture-wheel": "true", tabindex: 0 },
        on: { scroll: () => this.schedule(), pointerdown: (event) => event.stopPropagation() },
      },
      this.sheet,
    );
    this.observer = new ResizeObserver(() => this.schedule());
    this.observer.observe(this.box);
  }

  /** Show another dataset, or other pictures of it, from the beginning. */
  reset() {
    this.cells.clear();
    this.sheet.replaceChildren();
    this.box.scrollTop = 0;
    this.schedule();
  }

  /** Draw before the next frame is shown. */
  schedule() {
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  /** Stop for good. */
  dispose() {
    this.observer.disconnect();
    cancelAnimationFrame(this.frame);
  }

  draw() {
    this.frame = 0;
    const { source, text } = this.options;
    const width = this.sheet.clientWidth;
    const height = this.box.clientHeight;
    if (!width || !height) return;
    const grid = gridOf(width, source.total, text());
    const seen = seenOf(grid, source.total, this.box.scrollTop, height);
    setStyle(this.sheet, { height: `${grid.total}px` });
    for (const [place, cell] of this.cells) {
      if (place >= seen.first && place < seen.last) continue;
      cell.remove();
      this.cells.delete(place);
    }
    for (let place = seen.first; place < seen.last; place += 1) this.place(place, grid, seen);
    this.fetch(seen);
  }

  place(place, grid, seen) {
    const row = this.options.source.row(place);
    let cell = this.cells.get(place);
    if (!cell || (row && cell.dataset.state === "empty")) {
      const empty = { class: "graft-set-cell", attributes: { "data-state": "empty" } };
      const made = row ? this.cell(row) : element("div", empty);
      if (cell) cell.replaceWith(made);
      else this.sheet.append(made);
      this.cells.set(place, (cell = made));
    }
    const line = Math.floor((place - seen.first) / grid.columns);
    const column = place % grid.columns;
    const step = grid.height + GAP_PX;
    setStyle(cell, {
      width: `${grid.width}px`, height: `${grid.height}px`,
      transform: `translate(${column * (grid.width + GAP_PX)}px, ${seen.offset + line * step}px)`,
    });
  }

  async fetch(seen) {
    const { source } = this.options;
    const pages = pagesOf(seen.first, seen.last, PAGE);
    const news = await Promise.all(pages.map((page) => source.load(page)));
    if (news.some(Boolean)) this.schedule();
  }

  cell(row) {
    const { source, url, open } = this.options;
    const problems = row.problems ?? [];
    const state = problems.some((one) => one.is_error) ? "error" : problems.length ? "odd" : "good";
    const said = problems.map((one) => `${one.kind}: ${one.text}`).join("\n");
    const isThere = row.row !== null;
    const picture = isThere ? thumbnail(url(source.thumbnail(row.row))) : element("span", { text: "unreadable" });
    return element(
      "button",
      {
        class: "graft-set-cell",
        title: [row.name, row.caption, said].filter(Boolean).join("\n"),
        attributes: { type: "button", "data-state": state, "data-name": row.name },
        on: { click: () => open(row) },
      },
      element("span", { class: "graft-set-picture" }, picture, problems.length ? badge(problems) : null),
      element("span", { class: "graft-set-name", text: nameOf(row) }),
      element("span", { class: "graft-set-caption", text: captionOf(row) }),
    );
  }
}

/**
 * @param {string} address
 * @returns {HTMLImageElement} A thumbnail that says so where it cannot be shown.
 */
export function thumbnail(address) {
  const made = element("img", { attributes: { src: address, alt: "", draggable: "false", decoding: "async" } });
  made.addEventListener("error", () => made.replaceWith(element("span", { text: "not shown" })), { once: true });
  return made;
}

function badge(problems) {
  const more = problems.length > 1 ? ` +${problems.length - 1}` : "";
  return element("span", { class: "graft-set-badge", text: `${problems[0].kind}${more}` });
}

function nameOf(row) {
  const repeats = row.repeats > 1 ? `${row.repeats} x ` : "";
  return `${repeats}${row.name}`;
}

function captionOf(row) {
  if (row.row === null) return row.problems[0]?.text ?? "";
  return row.caption || "no caption";
}
