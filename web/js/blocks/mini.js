// SPDX-License-Identifier: Apache-2.0
// A model's blocks in one line, as small as a row of a node: where the selection is.

import { cellState } from "./map.js";

const ON = "#2f9e62";
const GAP = 6;

/**
 * Draw the blocks of a layout as columns, filled as far as they are selected.
 *
 * @param {import("../surface.js").Frame} frame
 * @param {any} layout As the route `blocks/layout` gives it.
 * @param {any} match As the route `blocks/match` gives it, or null.
 * @param {string} ink Colour of what is not selected.
 */
export function drawMini(frame, layout, match, ink) {
  const { context, width, height } = frame;
  const groups = (layout?.groups ?? []).filter((group) => group.name !== "other");
  const columns = groups.reduce((sum, group) => sum + group.blocks.length, 0);
  if (!columns) return;
  const step = Math.min(22, (width - GAP * (groups.length - 1)) / columns);
  const counted = tally(layout, match);
  let x = (width - step * columns - GAP * (groups.length - 1)) / 2;
  for (const group of groups) {
    for (const block of group.blocks) {
      const [on, of] = counted.get(block.name) ?? [0, 0];
      drawBlock(context, x + 0.5, Math.max(1.5, step - 1.5), height, on, of, ink);
      x += step;
    }
    x += GAP;
  }
}

function drawBlock(context, x, width, height, on, of, ink) {
  const state = cellState(on, of);
  context.globalAlpha = state === "absent" ? 0.12 : 0.3;
  context.fillStyle = ink;
  context.fillRect(x, 0, width, height);
  context.globalAlpha = 1;
  if (!on) return;
  context.fillStyle = ON;
  const filled = Math.max(2, (height * on) / of);
  context.fillRect(x, height - filled, width, filled);
}

/**
 * Selected layers and all, by the name of a block.
 *
 * @param {any} layout
 * @param {any} match
 * @returns {Map<string, [number, number]>}
 */
export function tally(layout, match) {
  const found = new Map();
  let at = 0;
  for (const group of layout?.groups ?? []) {
    for (const block of group.blocks) {
      const sums = [0, 0];
      for (const cell of block.cells) {
        sums[0] += match?.on?.[at] ?? 0;
        sums[1] += match?.of?.[at] ?? cell.layers;
        at += 1;
      }
      found.set(block.name, sums);
    }
  }
  return found;
}
