// SPDX-License-Identifier: Apache-2.0
// Which curves the panel shows of a run.

import { Smooth } from "../plot/smooth.js";
import { eventsOf } from "../runs/record.js";
import { COLORS } from "./look.js";

/** @typedef {import("../runs/record.js").RunRecord} RunRecord */

export const CURVES = {
  loss: { label: "Loss", title: "Loss of each step (faint), smoothed (bold), of the held-out pictures (dots)" },
  lr: { label: "Rate", title: "Learning rate" },
  grad_norm: { label: "Gradient", title: "Norm of the gradient before it is clipped" },
  speed: { label: "Speed", title: "Steps a second" },
  memory: { label: "Memory", title: "GiB that this ComfyUI holds on the device it trains on" },
};

/** Smoothed columns of the shown run; what was reckoned is kept while the run grows. */
export class Smoothing {
  /** @param {() => number} weight */
  constructor(weight) {
    this.weight = weight;
    /** @type {Map<string, {key: string, smooth: Smooth}>} */
    this.kept = new Map();
  }

  /**
   * @param {RunRecord} record
   * @param {string} [column]
   * @returns {Array<number | null>}
   */
  of(record, column = "loss") {
    const weight = Math.min(0.999, Math.max(0, Number(this.weight()) || 0));
    const key = `${record.run} ${record.made} ${weight}`;
    const known = this.kept.get(column);
    const smooth = known?.key === key ? known.smooth : new Smooth(weight);
    this.kept.set(column, { key, smooth });
    return smooth.follow(record.columns[column]);
  }
}

/**
 * What the chart shows.
 *
 * @param {RunRecord | null} record
 * @param {string} curve A name of `CURVES`.
 * @param {boolean} isLog
 * @param {Smoothing} smoothing
 * @returns {import("../plot/chart.js").Picture}
 */
export function pictureOf(record, curve, isLog, smoothing) {
  const steps = record?.columns.step ?? [];
  const empty = !record ? "press Run to train" : steps.length ? "no values yet" : "waiting for the first step";
  const last = Math.max(record?.state === "running" ? record.total : 0, steps.at(-1) ?? 0, 2);
  const picture = { curves: [], marks: [], range: /** @type {[number, number]} */ ([0, last]), isLog, empty };
  if (!record || !steps.length) return picture;
  picture.curves = curvesOf(record, curve, smoothing);
  picture.marks = [
    ...eventsOf(record, "sample").map(({ step }) => ({ x: step, color: COLORS.sample })),
    ...eventsOf(record, "saved").map(({ step }) => ({ x: step, color: COLORS.saved })),
  ];
  return picture;
}

/**
 * Validations of the trained weights; those of an average are of another curve.
 *
 * @param {RunRecord} record
 * @returns {any[]}
 */
export function validations(record) {
  return eventsOf(record, "validated").filter((event) => event.weights !== "averaged");
}

function curvesOf(record, curve, smoothing) {
  const { columns } = record;
  const one = (y, style, color = COLORS[curve]) => ({ x: columns.step, y, style, color });
  if (curve === "loss") {
    const held = validations(record);
    const [x, y] = [held.map((event) => event.step), held.map((event) => event.loss)];
    const found = [one(columns.loss, "faint"), one(smoothing.of(record), "bold")];
    return x.length ? [...found, { x, y, style: "dots", color: COLORS.validation }] : found;
  }
  if (curve === "grad_norm") return [one(columns.grad_norm, "faint"), one(smoothing.of(record, "grad_norm"), "bold")];
  if (curve === "speed") {
    const rate = (pace) => pace.map((seconds) => (seconds > 0 ? 1 / seconds : null));
    return [one(rate(columns.s_per_step), "faint"), one(rate(smoothing.of(record, "s_per_step")), "bold")];
  }
  return [one(columns[curve], "bold")];
}
