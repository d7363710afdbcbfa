// SPDX-License-Identifier: Apache-2.0
// A moving average that starts right: m_t = w m_(t-1) + (1 - w) v_t, shown as m_t / (1 - w^t).

/** Keeps the average of a growing list, so that a new point costs one step. */
export class Smooth {
  /** @param {number} weight Of what was before, 0 (no smoothing) to below 1. */
  constructor(weight) {
    this.weight = weight;
    /** @type {Array<number | null>} One for each value; what is no number repeats the last one. */
    this.values = [];
    this.mean = 0;
    this.left = 1; // weight ** t: what the average still lacks
  }

  /**
   * Take the values that are new in a list that only grew; another list needs another `Smooth`.
   *
   * @param {Array<number | null>} source
   * @returns {Array<number | null>} The smoothed list, as long as `source`.
   */
  follow(source) {
    for (let i = this.values.length; i < source.length; i++) {
      const value = source[i];
      if (Number.isFinite(value)) {
        this.mean = this.weight * this.mean + (1 - this.weight) * value;
        this.left *= this.weight;
      }
      this.values.push(this.left < 1 ? this.mean / (1 - this.left) : null);
    }
    return this.values;
  }
}

/**
 * @param {Array<number | null>} source
 * @param {number} weight
 * @returns {Array<number | null>}
 */
export function smoothed(source, weight) {
  return new Smooth(weight).follow(source);
}
