// SPDX-License-Identifier: Apache-2.0
// What a run's state, speed and values are called.

import { short } from "../plot/ticks.js";

const STATES = {
  running: "training",
  done: "done",
  finished: "finished early",
  interrupted: "interrupted",
  error: "stopped by an error",
  lost: "the server forgot it",
};
const RECENT = 40; // steps that the speed is the mean of

/** @param {string} state @returns {string} */
export function stateName(state) {
  return STATES[state] ?? String(state);
}

/**
 * `1:05`, `2:03:10`.
 *
 * @param {number} seconds
 * @returns {string}
 */
export function clock(seconds) {
  if (!Number.isFinite(seconds) || seconds < 0 || seconds > 1e9) return "\u2013";
  const whole = Math.round(seconds);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (value) => String(value).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

/**
 * Seconds a step, over the last ones.
 *
 * @param {Array<number | null>} pace
 * @param {number} [until] Index after the last one.
 * @returns {number | null}
 */
export function secondsAStep(pace, until = pace.length) {
  const known = pace.slice(Math.max(0, until - RECENT), until).filter((value) => Number.isFinite(value));
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

/**
 * `3.2 steps/s`, or `4.1 s/step` where a step takes longer than a second.
 *
 * @param {number | null} seconds A step.
 * @returns {string}
 */
export function speed(seconds) {
  if (!seconds || !(seconds > 0)) return "\u2013";
  return seconds > 1 ? `${short(seconds)} s/step` : `${short(1 / seconds)} steps/s`;
}

/**
 * Names and values at one step, in the order of their weight.
 *
 * @param {import("../runs/record.js").RunRecord} record
 * @param {Array<number | null>} smooth Smoothed losses.
 * @param {number} at Index of the step.
 * @param {any} validated The last validation until then.
 * @returns {Array<[string, string]>}
 */
export function values(record, smooth, at, validated) {
  const { columns } = record;
  const found = /** @type {Array<[string, string]>} */ ([
    ["loss", `${short(columns.loss[at], 4)} (smoothed ${short(smooth[at], 4)})`],
    ["lr", short(columns.lr[at])],
  ]);
  if (validated) found.push(["validation", `${short(validated.loss, 4)} at ${validated.step}`]);
  found.push(["gradient", short(columns.grad_norm[at])]);
  found.push(["speed", speed(secondsAStep(columns.s_per_step, at + 1))]);
  if (Number.isFinite(columns.memory[at])) found.push(["memory", `${short(columns.memory[at])} GiB`]);
  return found;
}
