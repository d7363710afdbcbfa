// SPDX-License-Identifier: Apache-2.0
// A canvas that fills its box, sharp at every zoom, drawn at most once a frame.

import { element } from "./dom.js";

const MAX_SCALE = 3;
const LOOK_EVERY_MS = 400;

/**
 * @typedef {object} Frame
 * @property {CanvasRenderingContext2D} context Its unit is a CSS pixel of the box.
 * @property {number} width Of the box.
 * @property {number} height
 * @property {number} text What to multiply a font's size by, so that it stays readable when zoomed out.
 */

/**
 * How much larger text has to be where the graph is shown smaller.
 *
 * @param {number} scale Of the graph's view, 1 = 100 %.
 * @returns {number} 1 to 1.4.
 */
export function textFactor(scale) {
  return Math.min(1.4, Math.max(1, 0.8 / Math.max(scale, 0.01)));
}

export class Surface {
  /**
   * @param {(frame: Frame) => void} draw Draws the whole picture; the canvas is empty.
   * @param {() => number} [scale] Zoom of the graph's view, which makes the canvas finer.
   */
  constructor(draw, scale = () => 1) {
    this.draw = draw;
    this.scale = scale;
    this.canvas = element("canvas", {
      style: { position: "absolute", inset: "0", width: "100%", height: "100%" },
    });
    /** The element to place; give it a height, or let it take what is left of a flex column. */
    this.box = element(
      "div",
      { style: { flex: "1 1 0", minHeight: "0", position: "relative", overflow: "hidden" } },
      this.canvas,
    );
    this.frame = 0;
    this.drawnAt = 0;
    this.observer = new ResizeObserver(() => this.schedule());
    this.observer.observe(this.box);
    this.timer = setInterval(() => this.look(), LOOK_EVERY_MS);
    this.schedule();
  }

  /** Draw before the next frame is shown; calling it often costs nothing. */
  schedule() {
    if (!this.frame) this.frame = requestAnimationFrame(() => this.paint());
  }

  /** Stop for good. */
  dispose() {
    this.observer.disconnect();
    clearInterval(this.timer);
    cancelAnimationFrame(this.frame);
    this.frame = 0;
  }

  /** The zoom of the graph sends no event. */
  look() {
    if (this.drawnAt && this.drawnAt !== this.scale()) this.schedule();
  }

  paint() {
    this.frame = 0;
    const width = this.box.clientWidth;
    const height = this.box.clientHeight;
    if (!width || !height) return;
    this.drawnAt = this.scale();
    const fine = (window.devicePixelRatio || 1) * Math.min(MAX_SCALE, Math.max(1, this.drawnAt));
    const size = [Math.round(width * fine), Math.round(height * fine)];
    if (this.canvas.width !== size[0]) this.canvas.width = size[0];
    if (this.canvas.height !== size[1]) this.canvas.height = size[1];
    const context = this.canvas.getContext("2d");
    context.setTransform(fine, 0, 0, fine, 0, 0);
    context.clearRect(0, 0, width, height);
    this.draw({ context, width, height, text: textFactor(this.drawnAt) });
  }
}
