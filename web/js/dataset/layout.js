// SPDX-License-Identifier: Apache-2.0
// Arithmetic and words of the dataset panel; nothing here touches the page.

/**
 * @typedef {object} Grid
 * @property {number} columns
 * @property {number} rows
 * @property {number} width Of a cell, in pixels.
 * @property {number} height
 * @property {number} total Height of all rows.
 */

export const CELL_PX = 92;
export const GAP_PX = 6;
const TEXT_LINE_PX = 13;
const TEXT_LINES = 3;
const MOST_PX = 15_000_000; // browsers stop at 17 to 33 million

/**
 * The cells of a grid that fills a width.
 *
 * @param {number} width Of the box.
 * @param {number} count Of the pictures.
 * @param {number} [text] Factor of the text's size.
 * @returns {Grid}
 */
export function gridOf(width, count, text = 1) {
  const columns = Math.max(1, Math.floor((width + GAP_PX) / (CELL_PX + GAP_PX)));
  const rows = Math.ceil(count / columns);
  const cell = Math.max(1, (width - GAP_PX * (columns - 1)) / columns);
  const height = Math.ceil(Math.min(cell, CELL_PX * 1.4) + TEXT_LINES * TEXT_LINE_PX * text + GAP_PX);
  return { columns, rows, width: cell, height, total: Math.min(MOST_PX, rows * (height + GAP_PX)) };
}

/**
 * The pictures that are seen, and one row more on either side.
 *
 * @param {Grid} grid
 * @param {number} count Of the pictures.
 * @param {number} top How far the box is scrolled.
 * @param {number} height Of the box.
 * @returns {{first: number, last: number, offset: number}} From `first` up to before `last`; `offset` is where the
 *   first one's row begins.
 */
export function seenOf(grid, count, top, height) {
  const step = grid.height + GAP_PX;
  const real = grid.rows * step;
  // Of more rows than a browser can be as high as, the same share is scrolled.
  const hidden = Math.max(1, grid.total - height);
  const shift = real > grid.total ? (top / hidden) * (real - height) : top;
  const row = Math.max(0, Math.floor(shift / step) - 1);
  const end = Math.min(grid.rows, Math.ceil((shift + height) / step) + 1);
  return {
    first: Math.min(count, row * grid.columns),
    last: Math.min(count, end * grid.columns),
    offset: row * step - shift + top,
  };
}

/**
 * Pages that hold the pictures from `first` up to before `last`.
 *
 * @param {number} first
 * @param {number} last
 * @param {number} size Of a page.
 * @returns {number[]}
 */
export function pagesOf(first, last, size) {
  const pages = [];
  for (let page = Math.floor(first / size); page * size < last; page += 1) pages.push(page);
  return pages;
}

/**
 * @param {number} number
 * @param {string} noun
 * @returns {string} "1 picture", "12,000 pictures"
 */
export function counted(number, noun) {
  return `${number.toLocaleString("en-US")} ${noun}${number === 1 ? "" : "s"}`;
}

/**
 * The line that says what a dataset holds.
 *
 * @param {any} summary Of the server.
 * @returns {string}
 */
export function totalsOf(summary) {
  const parts = [counted(summary.pictures, "picture")];
  if (summary.bucket_count) parts.push(counted(summary.bucket_count, "bucket"));
  if (summary.class_count) parts.push(`${summary.class_count} ${summary.class_count === 1 ? "class" : "classes"}`);
  if (summary.refused) parts.push(`${summary.refused.toLocaleString("en-US")} cannot be used`);
  if (summary.without_caption) parts.push(`${summary.without_caption.toLocaleString("en-US")} without caption`);
  if (summary.epoch && summary.epoch !== summary.pictures) {
    parts.push(`${summary.epoch.toLocaleString("en-US")} an epoch`);
  }
  return parts.join(", ");
}

/**
 * What is told of repeats, classes, masks and kinds of problems, a line each.
 *
 * @param {any} summary Of the server.
 * @returns {string[]}
 */
export function factsOf(summary) {
  const lines = [];
  const repeats = summary.repeats ?? [];
  if (repeats.some((row) => row.times !== 1)) {
    lines.push(`repeats: ${repeats.map((row) => `${row.times} x ${counted(row.pictures, "picture")}`).join(", ")}`);
  }
  const classes = summary.classes ?? [];
  if (classes.length) lines.push(`classes: ${classes.map((row) => `${row.name} (${row.pictures})`).join(", ")}`);
  if (summary.masks) lines.push(`masks: ${summary.masks} of ${summary.pictures}`);
  for (const part of summary.parts ?? []) {
    lines.push(`${part.source || "the graph"}: ${counted(part.pictures, "picture")}, resolution ${part.resolution}`);
  }
  const kinds = summary.kinds ?? [];
  if (kinds.length) lines.push(`found: ${kinds.map((row) => `${row.kind} ${row.pictures}`).join(", ")}`);
  return lines;
}

/**
 * How long the bars of buckets are, of 1.
 *
 * @param {Array<{pictures: number}>} buckets
 * @returns {number[]}
 */
export function barsOf(buckets) {
  const most = Math.max(1, ...buckets.map((bucket) => bucket.pictures));
  return buckets.map((bucket) => bucket.pictures / most);
}

/**
 * @param {number | null | undefined} bytes
 * @returns {string} "1.2 MB"; empty where it is not known.
 */
export function sizeOf(bytes) {
  if (bytes === null || bytes === undefined) return "";
  if (bytes < 1000) return `${bytes} B`;
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
