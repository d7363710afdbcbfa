// SPDX-License-Identifier: Apache-2.0
// From values to pixels and back: two axes, the upright one linear or logarithmic.

import { logTicks, short, ticks } from "./ticks.js";

export class Axes {
  /**
   * @param {{left: number, top: number, width: number, height: number}} box Pixels that the curves have.
   * @param {[number, number]} x Its range.
   * @param {[number, number]} y Its range; above 0 where `isLog`.
   * @param {boolean} [isLog]
   */
  constructor(box, x, y, isLog = false) {
    this.box = box;
    this.x = x;
    this.isLog = isLog;
    this.y = withRoom(y, isLog);
  }

  /** @param {number} value @returns {number} Pixels from the left. */
  toX(value) {
    return this.box.left + ((value - this.x[0]) / (this.x[1] - this.x[0])) * this.box.width;
  }

  /** @param {number} value @returns {number} Pixels from the top. */
  toY(value) {
    const [low, high] = this.y;
    const part = this.isLog ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
    return this.box.top + (1 - part) * this.box.height;
  }

  /** @param {number} pixel From the left. @returns {number} The value there, within the range. */
  fromX(pixel) {
    const part = Math.min(1, Math.max(0, (pixel - this.box.left) / this.box.width));
    return this.x[0] + part * (this.x[1] - this.x[0]);
  }

  /**
   * Draw lines and numbers.
   *
   * @param {CanvasRenderingContext2D} context
   * @param {{ink: string, line: string, font: number}} look
   */
  draw(context, look) {
    const { left, top, width, height } = this.box;
    const [low, high] = this.y;
    const count = Math.max(2, height / (look.font * 2.8));
    const marks = this.isLog ? logTicks(low, high) : ticks(low, high, count);
    context.save();
    context.font = `${look.font}px sans-serif`;
    context.fillStyle = look.ink;
    context.strokeStyle = look.line;
    context.lineWidth = 1;
    context.textAlign = "right";
    context.textBaseline = "middle";
    let above = Infinity;
    for (const value of marks) {
      const y = Math.round(this.toY(value)) + 0.5;
      line(context, left, y, left + width, y);
      if (above - y < look.font * 1.3) continue; // a logarithmic axis crowds
      above = y;
      context.fillText(short(value), left - 4, y);
    }
    context.textAlign = "center";
    context.textBaseline = "alphabetic";
    const wanted = Math.max(2, width / (look.font * 7));
    for (const value of ticks(this.x[0], this.x[1], wanted)) {
      if (!Number.isInteger(value)) continue;
      const text = value.toLocaleString("en");
      const half = context.measureText(text).width / 2;
      const x = Math.min(left + width - half, Math.max(left + half, this.toX(value)));
      context.fillText(text, x, top + height + look.font + 2);
    }
    context.restore();
  }
}

function withRoom([low, high], isLog) {
  if (isLog) {
    const room = (high / low) ** 0.05;
    return high > low * 1.000001 ? [low / room, high * room] : [low / 2, high * 2];
  }
  const size = Math.max(Math.abs(low), Math.abs(high));
  const room = high - low > 1e-6 * size ? (high - low) * 0.06 : size * 0.1 || 1;
  return [low - room, high + room];
}

function line(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}
