// SPDX-License-Identifier: Apache-2.0
// What is known of one run, from snapshots of the server and from the messages that follow them.
//
// Every message has a seq (1, 2, 3, ...). One that is known already is dropped, the next one is applied, and after a
// gap the server is asked for what came since.

export const COLUMNS = ["step", "loss", "lr", "grad_norm", "s_per_step", "memory"];

/**
 * @typedef {object} RunRecord
 * @property {string} run Its id.
 * @property {number} seq Of the last message that is in it.
 * @property {string | null} node Execution id of the node.
 * @property {string | null} workflow Id of the workflow.
 * @property {string} state running, done, finished, interrupted, error; lost where the server forgot it.
 * @property {string} text What was said at its end.
 * @property {number} step
 * @property {number} total
 * @property {Record<string, any>} facts
 * @property {number} made Which history this is; another one has other curves.
 * @property {Record<string, any[]>} columns By name of `COLUMNS`.
 * @property {any[]} events All but the steps, oldest first.
 */

let made = 0;

/**
 * A run that is only known by its first message.
 *
 * @param {any} head
 * @returns {RunRecord}
 */
export function emptyRecord(head) {
  return {
    run: String(head.run),
    seq: 0,
    node: head.node ?? null,
    workflow: head.workflow_id ?? null,
    state: "running",
    text: "",
    step: 0,
    total: head.total ?? 0,
    facts: {},
    made: ++made,
    columns: Object.fromEntries(COLUMNS.map((name) => [name, []])),
    events: [],
  };
}

/**
 * Take what the server answered.
 *
 * @param {RunRecord | null} known
 * @param {any} snapshot Of GET /graft/runs/{id}?since=known.seq
 * @returns {RunRecord} `known`, grown, or a new one.
 */
export function withSnapshot(known, snapshot) {
  if (known && !snapshot.reset && known.seq > snapshot.seq) return known; // messages overtook the answer
  const record = known && !snapshot.reset ? known : emptyRecord(snapshot);
  const rows = snapshot.points.filter((row) => row[0] > record.seq);
  addRows(record, rows.map((row) => row.slice(1)));
  record.events.push(...snapshot.events.filter((event) => event.seq > record.seq));
  return Object.assign(record, {
    seq: snapshot.seq,
    node: snapshot.node ?? null,
    workflow: snapshot.workflow_id ?? null,
    state: snapshot.state,
    text: snapshot.text ?? "",
    step: snapshot.step ?? 0,
    total: snapshot.total ?? 0,
    facts: snapshot.facts ?? {},
  });
}

/**
 * Take one message, if it is the next one.
 *
 * @param {RunRecord | null} record
 * @param {any} message Of the event `graft.run`.
 * @returns {"applied" | "old" | "gap"} With `gap` nothing is taken.
 */
export function apply(record, message) {
  if (!record) return "gap";
  if (message.seq <= record.seq) return message.kind === "start" ? "gap" : "old";
  if (message.seq !== record.seq + 1) return "gap";
  record.seq = message.seq;
  record.total = message.total ?? record.total;
  if (message.kind === "start") begin(record, message);
  else {
    addRows(record, message.points ?? []);
    record.step = record.columns.step.at(-1) ?? record.step;
    if (message.kind !== "progress") record.events.push(eventOf(message));
    if (message.kind === "ended") end(record, message);
  }
  return "applied";
}

/**
 * The events of one kind.
 *
 * @param {RunRecord | null} record
 * @param {string} kind
 * @returns {any[]}
 */
export function eventsOf(record, kind) {
  return (record?.events ?? []).filter((event) => event.kind === kind);
}

/** The same rule as the server's: what came after the step that a run goes on at is no more. */
function begin(record, message) {
  const step = message.step ?? 0;
  const rows = rowsOf(record).filter((row) => row[0] <= step);
  const stays = ({ step: at = 0, kind }) => (at > 0 && at <= step) || (at === 0 && step > 0 && kind !== "warned");
  record.columns = Object.fromEntries(COLUMNS.map((name) => [name, []]));
  addRows(record, rows);
  Object.assign(record, {
    made: ++made,
    node: message.node ?? null,
    workflow: message.workflow_id ?? null,
    state: "running",
    text: "",
    step,
    facts: message.facts ?? {},
    events: record.events.filter(stays),
  });
}

function end(record, message) {
  record.state = message.state ?? "done";
  record.text = message.text ?? "";
}

function eventOf(message) {
  const { points: _points, ...event } = message;
  return event;
}

function addRows(record, rows) {
  for (const row of rows) COLUMNS.forEach((name, i) => record.columns[name].push(row[i] ?? null));
}

function rowsOf({ columns }) {
  return columns.step.map((_, i) => COLUMNS.map((name) => columns[name][i]));
}
