// SPDX-License-Identifier: Apache-2.0
// As many points as the eye can tell apart: the lowest and the highest of each column of pixels.

/**
 * Index of the first x that is not below `value`.
 *
 * @param {number[]} x Ascending.
 * @param {number} value
 * @returns {number} `x.length` where all are below.
 */
export function firstNotBelow(x, value) {
  let low = 0;
  let high = x.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * Indices of the points to draw between two x, with one more on each side where there is one. Each column keeps the
 * point with the lowest and the one with the highest y, so that a spike is seen however many steps there are.
 *
 * @param {number[]} x Ascending.
 * @param {Array<number | null>} y What is no number is left out.
 * @param {number} from
 * @param {number} to
 * @param {number} columns
 * @returns {number[]} Ascending, at most 2 * columns + 2.
 */
export function decimate(x, y, from, to, columns) {
  const begin = Math.max(0, firstNotBelow(x, from) - 1);
  const end = Math.min(x.length, firstNotBelow(x, to) + 1);
  const width = (to - from) / Math.max(1, columns) || 1;
  const found = [];
  let column = NaN;
  let low = -1;
  let high = -1;
  const flush = () => {
    if (low >= 0) found.push(Math.min(low, high));
    if (low !== high) found.push(Math.max(low, high));
  };
  for (let i = begin; i < end; i++) {
    if (!Number.isFinite(y[i])) continue;
    const here = Math.floor((x[i] - from) / width);
    if (here !== column) {
      flush();
      column = here;
      low = high = i;
    } else {
      if (y[i] < y[low]) low = i;
      if (y[i] > y[high]) high = i;
    }
  }
  flush();
  return found;
}

/**
 * The lowest and the highest y between two x.
 *
 * @param {number[]} x Ascending.
 * @param {Array<number | null>} y
 * @param {number} from
 * @param {number} to
 * @param {boolean} [isLog] Whether only what is above 0 counts.
 * @returns {[number, number] | null}
 */
export function extent(x, y, from, to, isLog = false) {
  let low = Infinity;
  let high = -Infinity;
  for (let i = firstNotBelow(x, from); i < x.length && x[i] <= to; i++) {
    const value = y[i];
    if (!Number.isFinite(value) || (isLog && value <= 0)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}
