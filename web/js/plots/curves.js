// SPDX-License-Identifier: Apache-2.0
// Curves over an axis and a grid of coloured cells, on a canvas. Draws what it is given and knows nothing of the host.

import { logTicks, short, ticks } from "../plot/ticks.js";

const GRID = "rgba(128, 128, 128, 0.28)";

/**
 * @typedef {object} Curve
 * @property {number[]} x
 * @property {Array<number | null>} y Null is left out.
 * @property {string} color
 * @property {string} label For the legend.
 * @property {"line" | "bars" | "dots"} [style] Bars need one `x` more than `y`: the edges.
 * @property {boolean} [isRight] Whether it has the axis on the right.
 */

/**
 * @typedef {object} Chart
 * @property {Curve[]} curves
 * @property {boolean} [isLogX]
 * @property {boolean} [isLogY] Of the left axis; what is not above 0 is left out.
 * @property {string} xLabel
 */

/**
 * Draw a chart.
 *
 * @param {import("../surface.js").Frame} frame
 * @param {Chart} chart
 * @param {string} ink Colour of text.
 */
export function drawChart(frame, chart, ink) {
  const { context, width, height } = frame;
  const size = 10 * frame.text;
  context.font = `${size}px sans-serif`;
  const hasRight = chart.curves.some((curve) => curve.isRight);
  const box = {
    left: 4 * size, right: width - (hasRight ? 3.8 * size : size), top: 1.7 * size, bottom: height - 2.7 * size,
  };
  if (box.right - box.left < 20 || box.bottom - box.top < 16) return;
  const x = axis(chart.curves.flatMap((curve) => curve.x), box.left, box.right, chart.isLogX, true);
  const sides = [false, true].map((isRight) => {
    const values = chart.curves.filter((curve) => Boolean(curve.isRight) === isRight).flatMap((curve) => curve.y);
    return axis(values, box.bottom, box.top, !isRight && chart.isLogY, false);
  });
  drawGrid(context, chart, box, x, sides, ink, size);
  for (const curve of chart.curves) drawCurve(context, curve, x, sides[curve.isRight ? 1 : 0], box);
  drawLegend(context, chart, box, ink, size);
}

/**
 * A scale from values to pixels.
 *
 * @param {Array<number | null>} values
 * @param {number} from Pixel of the least.
 * @param {number} to Pixel of the largest.
 * @param {boolean} [isLog]
 * @param {boolean} [isTight] Whether it begins at the least value and not at 0.
 * @returns {{at: (value: number) => number, ticks: number[], isLog: boolean}}
 */
export function axis(values, from, to, isLog = false, isTight = false) {
  const found = values.filter((value) => Number.isFinite(value) && (!isLog || value > 0));
  let low = Math.min(...found);
  let high = Math.max(...found);
  if (!found.length) [low, high] = [isLog ? 0.1 : 0, 1];
  if (!isLog && !isTight) low = Math.min(0, low);
  if (high <= low) high = isLog ? low * 10 : low + 1;
  if (isLog && !isTight) [low, high] = [low / 1.2, high * 1.2];
  const turn = isLog ? Math.log : (value) => value;
  const span = turn(high) - turn(low);
  const count = Math.max(2, Math.abs(to - from) / (isTight ? 60 : 26));
  return {
    at: (value) => from + ((turn(value) - turn(low)) / span) * (to - from),
    ticks: isLog ? logTicks(low, high) : ticks(low, high, count),
    isLog,
  };
}

function drawGrid(context, chart, box, x, sides, ink, size) {
  const line = (x0, y0, x1, y1) => {
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
    context.stroke();
  };
  context.strokeStyle = GRID;
  context.lineWidth = 1;
  context.fillStyle = ink;
  context.textBaseline = "top";
  context.textAlign = "center";
  let free = -Infinity;
  for (const tick of x.ticks) {
    const at = x.at(tick);
    line(at, box.top, at, box.bottom);
    const half = context.measureText(short(tick)).width / 2 + 3;
    if (at - half < free) continue;
    context.fillText(short(tick), at, box.bottom + 3);
    free = at + half;
  }
  context.textAlign = "right";
  context.fillText(chart.xLabel, box.right, box.bottom + 3 + 1.15 * size);
  context.textBaseline = "middle";
  upright(sides[0], size, (tick, y, isFree) => {
    line(box.left, y, box.right, y);
    if (isFree) context.fillText(short(tick), box.left - 4, y);
  });
  context.textAlign = "left";
  if (!chart.curves.some((curve) => curve.isRight)) return;
  upright(sides[1], size, (tick, y, isFree) => {
    if (isFree) context.fillText(short(tick), box.right + 4, y);
  });
}

/** Go through the ticks of an upright axis; those of a logarithmic one crowd. */
function upright(side, size, each) {
  let last = Infinity;
  for (const tick of side.ticks) {
    const y = side.at(tick);
    const isFree = last - y >= 1.3 * size;
    if (isFree) last = y;
    each(tick, y, isFree);
  }
}

function drawCurve(context, curve, x, y, box) {
  context.fillStyle = curve.color;
  context.strokeStyle = curve.color;
  const shown = (value) => Number.isFinite(value) && (!y.isLog || value > 0);
  if (curve.style === "bars") {
    context.globalAlpha = 0.45;
    curve.y.forEach((value, at) => {
      if (!shown(value)) return;
      const left = x.at(curve.x[at]);
      context.fillRect(left, y.at(value), Math.max(0.6, x.at(curve.x[at + 1]) - left - 0.6), box.bottom - y.at(value));
    });
    context.globalAlpha = 1;
    return;
  }
  context.lineWidth = 1.8;
  context.beginPath();
  let isDown = false;
  curve.y.forEach((value, at) => {
    if (!shown(value)) {
      isDown = false;
      return;
    }
    const move = isDown ? "lineTo" : "moveTo";
    context[move](x.at(curve.x[at]), y.at(value));
    isDown = true;
  });
  context.stroke();
  if (curve.style !== "dots" || curve.x.length > 60) return;
  curve.y.forEach((value, at) => {
    if (!shown(value)) return;
    context.beginPath();
    context.arc(x.at(curve.x[at]), y.at(value), 2.4, 0, 7);
    context.fill();
  });
}

function drawLegend(context, chart, box, ink, size) {
  let left = box.left;
  context.textAlign = "left";
  context.textBaseline = "middle";
  for (const curve of chart.curves) {
    const width = context.measureText(curve.label).width + 2.4 * size;
    if (left + width > box.right + 3 * size) return;
    context.fillStyle = curve.color;
    context.fillRect(left, 0.8 * size - 2, 1.2 * size, 4);
    context.fillStyle = ink;
    context.fillText(curve.label, left + 1.5 * size, 0.8 * size);
    left += width + 0.4 * size;
  }
}

/**
 * @typedef {object} Grid
 * @property {string[]} columns Names.
 * @property {Array<{label: string, values: Array<number | null>}>} rows Values from -1 to 1.
 */

/**
 * Draw rows of cells, coloured by their value: orange above 0, blue below, grey where there is none.
 *
 * @param {import("../surface.js").Frame} frame
 * @param {Grid} grid
 * @param {string} ink
 */
export function drawGridOf(frame, grid, ink) {
  const { context, width, height } = frame;
  const size = 10 * frame.text;
  context.font = `${size}px sans-serif`;
  const widest = Math.max(...grid.rows.map((row) => context.measureText(row.label).width));
  const left = Math.min(0.5 * width, widest + 8);
  const bottom = height - 1.6 * size;
  const step = Math.min(26, (bottom - 2) / grid.rows.length);
  const cell = (width - left - 4) / Math.max(1, grid.columns.length);
  context.textBaseline = "middle";
  grid.rows.forEach((row, at) => {
    const top = 2 + at * step;
    context.fillStyle = ink;
    context.textAlign = "right";
    context.fillText(row.label, left - 5, top + step / 2, left - 6);
    row.values.forEach((value, column) => {
      context.fillStyle = cellColor(value);
      context.fillRect(left + column * cell, top, Math.max(1, cell - 1), step - 2);
    });
  });
  context.fillStyle = ink;
  context.textAlign = "left";
  const first = grid.columns[0] ?? "";
  const last = grid.columns.at(-1) ?? "";
  context.fillText(first, left, bottom + 0.8 * size);
  context.textAlign = "right";
  if (grid.columns.length > 1) context.fillText(last, width - 4, bottom + 0.8 * size);
}

/**
 * @param {number | null} value From -1 to 1.
 * @returns {string}
 */
export function cellColor(value) {
  if (value === null || !Number.isFinite(value)) return "rgba(128, 128, 128, 0.15)";
  const strength = Math.min(1, 0.06 + Math.abs(value));
  return value >= 0 ? `rgba(240, 140, 40, ${strength})` : `rgba(70, 130, 240, ${strength})`;
}
