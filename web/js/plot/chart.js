// SPDX-License-Identifier: Apache-2.0
// Curves over steps: hover for values, drag to zoom in, click twice to zoom out.

import { Surface } from "../surface.js";
import { Axes } from "./axes.js";
import { decimate, extent, firstNotBelow } from "./decimate.js";

/**
 * @typedef {object} Curve
 * @property {number[]} x Steps, ascending.
 * @property {Array<number | null>} y
 * @property {string} color
 * @property {"faint" | "bold" | "dots"} style
 *
 * @typedef {object} Mark
 * @property {number} x
 * @property {string} color
 *
 * @typedef {object} Picture
 * @property {Curve[]} curves
 * @property {Mark[]} marks Small triangles on the axis.
 * @property {[number, number]} range Of the steps, when nothing is zoomed.
 * @property {boolean} isLog
 * @property {string} empty Shown where there is no curve.
 */

const NOTHING = { curves: [], marks: [], range: [0, 1], isLog: false, empty: "" };

export class Chart {
  /**
   * @param {object} [options]
   * @param {() => number} [options.scale] Zoom of the graph's view.
   * @param {(step: number | null) => void} [options.onHover] The step below the pointer.
   * @param {(text: number) => void} [options.onText] How much larger text is drawn now.
   * @param {() => void} [options.onZoom]
   */
  constructor({ scale, onHover = () => {}, onText = () => {}, onZoom = () => {} } = {}) {
    this.onHover = onHover;
    this.onText = onText;
    this.onZoom = onZoom;
    /** @type {Picture} */
    this.picture = NOTHING;
    /** @type {[number, number] | null} */
    this.zoomed = null;
    this.hover = null; // pixels
    this.drag = null; // {from, to}: pixels
    this.axes = null;
    this.cost = 0;
    this.surface = new Surface((frame) => this.draw(frame), scale);
    this.root = this.surface.box;
    this.root.style.minHeight = "80px";
    this.listen(this.surface.canvas);
  }

  /** @param {Picture} picture */
  show(picture) {
    this.picture = picture;
    this.surface.schedule();
  }

  /** Show all steps again. */
  resetZoom() {
    if (!this.zoomed) return;
    this.zoomed = null;
    this.onZoom();
    this.surface.schedule();
  }

  dispose() {
    this.surface.dispose();
  }

  listen(canvas) {
    const on = (name, listener) => canvas.addEventListener(name, listener);
    canvas.style.cursor = "crosshair";
    canvas.style.touchAction = "none";
    on("pointerdown", (event) => {
      if (event.button !== 0) return; // the middle one moves the graph
      event.stopPropagation(); // the node stays where it is
      canvas.setPointerCapture?.(event.pointerId);
      this.drag = { from: event.offsetX, to: event.offsetX };
    });
    on("pointermove", (event) => {
      if (this.drag) {
        event.stopPropagation();
        this.drag.to = event.offsetX;
      }
      this.point(event.offsetX);
    });
    on("pointerup", (event) => {
      if (!this.drag) return;
      event.stopPropagation();
      this.zoomTo(this.drag);
      this.drag = null;
    });
    on("pointercancel", () => (this.drag = null));
    on("pointerleave", () => this.point(null));
    on("dblclick", (event) => {
      event.stopPropagation();
      this.resetZoom();
    });
  }

  point(pixel) {
    this.hover = pixel;
    this.onHover(pixel === null || !this.axes ? null : this.axes.fromX(pixel));
    this.surface.schedule();
  }

  zoomTo({ from, to }) {
    this.surface.schedule();
    if (!this.axes || Math.abs(to - from) < 4) return;
    const range = [Math.min(from, to), Math.max(from, to)].map((pixel) => this.axes.fromX(pixel));
    if (range[1] - range[0] < 1) return; // less than a step
    this.zoomed = /** @type {[number, number]} */ (range);
    this.onZoom();
  }

  draw(frame) {
    const begun = performance.now();
    this.onText(frame.text);
    const look = this.look(frame.text);
    const { picture } = this;
    const x = this.zoomed ?? picture.range;
    const y = range(picture, x);
    if (!y) {
      this.axes = null;
      note(frame, look, picture.empty);
      return;
    }
    const box = boxOf(frame, look.font);
    if (box.width < 20 || box.height < 20) return;
    this.axes = new Axes(box, x, y, picture.isLog);
    this.axes.draw(frame.context, look);
    frame.context.save();
    clip(frame.context, box);
    for (const curve of picture.curves) drawCurve(frame.context, this.axes, curve);
    frame.context.restore();
    for (const mark of picture.marks) drawMark(frame.context, this.axes, mark);
    this.drawPointer(frame.context, look);
    this.cost = performance.now() - begun;
  }

  look(text) {
    const style = getComputedStyle(this.root);
    return { ink: style.color, line: "rgba(128,128,128,0.28)", font: 10 * text };
  }

  drawPointer(context, look) {
    const { box } = this.axes;
    if (this.drag && Math.abs(this.drag.to - this.drag.from) >= 4) {
      context.fillStyle = "rgba(128,128,128,0.25)";
      const left = Math.min(this.drag.from, this.drag.to);
      context.fillRect(left, box.top, Math.abs(this.drag.to - this.drag.from), box.height);
    }
    if (this.hover === null || this.hover < box.left || this.hover > box.left + box.width) return;
    context.globalAlpha = 0.5;
    context.fillStyle = look.ink;
    context.fillRect(Math.round(this.hover), box.top, 1, box.height);
    context.globalAlpha = 1;
    const step = this.axes.fromX(this.hover);
    for (const curve of this.picture.curves) {
      if (curve.style === "faint") continue;
      const at = nearest(curve.x, step);
      if (at < 0 || !drawable(curve.y[at], this.axes.isLog)) continue;
      dot(context, this.axes.toX(curve.x[at]), this.axes.toY(curve.y[at]), curve.color, 3.5);
    }
  }
}

/**
 * Index of the x nearest to a value.
 *
 * @param {number[]} x Ascending.
 * @param {number} value
 * @returns {number} -1 where there is none.
 */
export function nearest(x, value) {
  const after = firstNotBelow(x, value);
  if (after === 0) return x.length ? 0 : -1;
  if (after === x.length) return x.length - 1;
  return value - x[after - 1] < x[after] - value ? after - 1 : after;
}

function range(picture, x) {
  let [low, high] = [Infinity, -Infinity];
  for (const curve of picture.curves) {
    const found = extent(curve.x, curve.y, x[0], x[1], picture.isLog);
    if (found) [low, high] = [Math.min(low, found[0]), Math.max(high, found[1])];
  }
  return low <= high ? /** @type {[number, number]} */ ([low, high]) : null;
}

function boxOf({ width, height }, font) {
  const [left, top, right, bottom] = [font * 4.6, font * 0.8, font * 0.8, font * 1.7];
  return { left, top, width: width - left - right, height: height - top - bottom };
}

function clip(context, { left, top, width, height }) {
  context.beginPath();
  context.rect(left, top - 2, width + 2, height + 4);
  context.clip();
}

function drawCurve(context, axes, { x, y, color, style }) {
  const shown = decimate(x, y, axes.x[0], axes.x[1], axes.box.width).filter((i) => drawable(y[i], axes.isLog));
  const points = shown.map((i) => [axes.toX(x[i]), axes.toY(y[i])]);
  context.globalAlpha = style === "faint" ? 0.35 : 1;
  context.lineWidth = style === "faint" ? 1 : 1.8;
  context.strokeStyle = color;
  context.lineJoin = "round";
  context.beginPath();
  for (const [index, point] of points.entries()) {
    if (index) context.lineTo(point[0], point[1]);
    else context.moveTo(point[0], point[1]);
  }
  context.stroke();
  if (style === "dots" || points.length === 1) for (const point of points) dot(context, point[0], point[1], color, 2.5);
  context.globalAlpha = 1;
}

function drawable(value, isLog) {
  return Number.isFinite(value) && (!isLog || value > 0);
}

function dot(context, x, y, color, radius) {
  context.fillStyle = color;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

function drawMark(context, axes, { x, color }) {
  if (x < axes.x[0] || x > axes.x[1]) return;
  const [at, bottom] = [axes.toX(x), axes.box.top + axes.box.height];
  context.fillStyle = color;
  context.beginPath();
  context.moveTo(at, bottom - 6);
  context.lineTo(at - 3.5, bottom);
  context.lineTo(at + 3.5, bottom);
  context.fill();
}

function note({ context, width, height }, look, text) {
  context.font = `${look.font * 1.1}px sans-serif`;
  context.fillStyle = look.ink;
  context.globalAlpha = 0.6;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(text, width / 2, height / 2, width - 10);
  context.globalAlpha = 1;
}
