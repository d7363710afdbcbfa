// SPDX-License-Identifier: Apache-2.0
// What the plot of each node asks the server, and what is drawn of the answer. Imports nothing from the host.

import { drawChart, drawGridOf } from "./curves.js";
import { modelSource } from "../source.js";

const DRAWN = "#6b8fd6";
const COUNTED = "#e08a2e";
const WEIGHT = "#2f9e62";

/**
 * @typedef {object} Plot
 * @property {string} title
 * @property {string} route
 * @property {number} height
 * @property {(node: any) => object | string} question The body, or why there is nothing to ask.
 * @property {(frame: import("../surface.js").Frame, answer: any, ink: string) => void} draw
 * @property {string} [ran] What of the node's output is an answer, too, for what is known after a run only.
 * @property {boolean} [takesFamily] Whether a family can be chosen where no model is connected.
 */

/** @type {Record<string, Plot>} */
export const PLOTS = {
  GraftObjective: {
    title: "noise levels and weights",
    route: "plots/objective",
    height: 200,
    takesFamily: true,
    question(node) {
      const source = sourceOf(node);
      if (!source) return "Connect it to a training node with a model, or choose a family above.";
      const names = ["noise", "weight", "metric", "noising", "options", "preserve", "preserve_on"];
      return { ...source, widgets: values(node, names) };
    },
    draw: drawObjective,
  },
  GraftSchedule: {
    title: "noise levels by step",
    route: "plots/schedule",
    height: 170,
    question(node) {
      const names = ["schedule", "steps", "sigma_min", "sigma_max", "rho", "options"];
      return { ...(modelSource(node) ?? {}), widgets: values(node, names) };
    },
    draw: drawSchedule,
  },
  GraftMergeLoras: {
    title: "overlap of the changes",
    route: "plots/overlap",
    ran: "graft_overlap",
    height: 130,
    question(node) {
      const files = [];
      for (const n of [1, 2, 3, 4]) {
        const file = node.widgets?.find((widget) => widget.name === `file_${n}`)?.value;
        const isWired = ["file", "adapter"].some((name) => isLinked(node, `${name}_${n}`));
        if (isWired) return "How much they change the same things is shown after a run; of files alone at once.";
        if (file && file !== "none") files.push(String(file));
      }
      if (files.length < 2) return "Choose two files to see how much they change the same things.";
      return { ...(modelSource(node) ?? {}), files };
    },
    draw: drawOverlap,
  },
};

/** A chosen family takes the place of a model that is not connected. */
function sourceOf(node) {
  const family = node.properties?.graft_family;
  return modelSource(node) ?? (family ? { source: "family", name: String(family) } : null);
}

function values(node, names) {
  const known = (node.widgets ?? []).filter((widget) => names.includes(widget.name));
  return Object.fromEntries(known.map((widget) => [widget.name, widget.value]));
}

function isLinked(node, name) {
  const input = node.inputs?.find((one) => one.name === name);
  return input?.link !== null && input?.link !== undefined;
}

function drawObjective(frame, answer, ink) {
  const middles = answer.weight.map((_, at) => {
    const [low, high] = [answer.edges[at], answer.edges[at + 1]];
    return answer.log ? Math.sqrt(low * high) : (low + high) / 2;
  });
  const percent = (shares) => shares.map((share) => 100 * share);
  const chart = {
    isLogX: answer.log,
    xLabel: `sigma · ${answer.title}`,
    curves: [
      { x: answer.edges, y: percent(answer.drawn), color: DRAWN, label: "drawn %", style: "bars" },
      { x: middles, y: percent(answer.counted), color: COUNTED, label: "drawn × w %" },
      { x: middles, y: answer.weight, color: WEIGHT, label: "w(sigma)", isRight: true },
    ],
  };
  drawChart(frame, chart, ink);
}

function drawSchedule(frame, answer, ink) {
  const above = answer.sigmas.filter((sigma) => sigma > 0);
  const isLogY = Math.max(...above) / Math.min(...above) > 20;
  const title = answer.title ? ` · ${answer.title}` : "";
  const label = isLogY ? "sigma (log)" : "sigma";
  const curve = { x: answer.at, y: answer.sigmas, color: COUNTED, label, style: "dots" };
  drawChart(frame, { isLogY, xLabel: `step${title}`, curves: [curve] }, ink);
}

function drawOverlap(frame, answer, ink) {
  const rows = answer.pairs.map(({ files, cosine, by_block: values_ }) => ({
    label: `${files[0] + 1} · ${files[1] + 1}: cosine ${cosine === null ? "?" : cosine.toFixed(2)}`,
    values: values_,
  }));
  drawGridOf(frame, { columns: answer.blocks, rows }, ink);
}
