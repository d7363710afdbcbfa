// SPDX-License-Identifier: Apache-2.0
// Where an axis has its lines, and what stands at them.

/**
 * Multiples of 1, 2 or 5 times a power of ten within a range.
 *
 * @param {number} low
 * @param {number} high
 * @param {number} count About how many are wanted.
 * @returns {number[]}
 */
export function ticks(low, high, count) {
  if (!(count > 0) || !hasRange(low, high)) return [];
  const step = niceStep((high - low) / count);
  const first = Math.ceil(low / step - 1e-9);
  const found = [];
  for (let i = first; i * step <= high + step * 1e-9; i++) found.push(rounded(i * step));
  return found;
}

/**
 * Powers of ten within a range, and 2 and 5 times those where they are few.
 *
 * @param {number} low Above 0.
 * @param {number} high
 * @returns {number[]}
 */
export function logTicks(low, high) {
  if (!(low > 0) || !hasRange(low, high)) return [];
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const decades = Math.log10(high / low);
  if (decades < 0.5) return ticks(low, high, 4).filter((value) => value > 0);
  const parts = decades > 4 ? [1] : [1, 2, 5];
  const every = decades > 10 ? Math.ceil(decades / 10) : 1;
  const found = [];
  for (let power = first; power <= last; power += every) {
    for (const part of parts) {
      const value = rounded(part * 10 ** power);
      if (value >= low && value <= high) found.push(value);
    }
  }
  return found;
}

/**
 * A number for an axis or a line of values: `0.0912`, `1.0e-4`, `12,400`.
 *
 * @param {number | null | undefined} value
 * @param {number} [digits] That count.
 * @returns {string} A dash for what is no number.
 */
export function short(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size < 1e-3 || size >= 1e6) return value.toExponential(Math.max(0, digits - 2)).replace("e+", "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(digits)));
}

/** Whether two numbers are farther apart than what rounding may make of one. */
function hasRange(low, high) {
  return Number.isFinite(high - low) && high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high));
}

function niceStep(raw) {
  const power = 10 ** Math.floor(Math.log10(raw));
  const part = raw / power;
  return power * (part < 1.5 ? 1 : part < 3.5 ? 2 : part < 7.5 ? 5 : 10);
}

/** Without the dust of a product: 3 * 0.1 is 0.3. */
function rounded(value) {
  return Number(value.toPrecision(12));
}
