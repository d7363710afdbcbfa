// SPDX-License-Identifier: Apache-2.0
// The runs that this page knows, kept whole through reloads, lost connections and messages that come too early.

import { apply, emptyRecord, withSnapshot } from "./record.js";

/**
 * @typedef {import("./record.js").RunRecord} RunRecord
 *
 * @typedef {object} Server
 * @property {(run: string, since: number) => Promise<{status: number, body: any}>} run
 * @property {() => Promise<any[] | null>} heads
 */

const MAX_TRIES = 5;

export class RunClient {
  /**
   * @param {Server} server
   * @param {(record: RunRecord) => void} onChange
   */
  constructor(server, onChange) {
    this.server = server;
    this.onChange = onChange;
    /** @type {Map<string, RunRecord>} */
    this.runs = new Map();
    /** @type {Map<string, Promise<RunRecord | null>>} */
    this.asked = new Map();
  }

  /** @param {string} run @returns {RunRecord | null} */
  get(run) {
    return this.runs.get(run) ?? null;
  }

  /**
   * Take a message of the event `graft.run`.
   *
   * @param {any} message
   * @returns {Promise<void>}
   */
  async take(message) {
    if (!this.runs.has(message.run) && message.kind === "start" && !message.step) {
      this.runs.set(message.run, { ...emptyRecord(message), seq: message.seq - 1 });
    }
    let record = this.get(message.run);
    let taken = apply(record, message);
    for (let tries = 0; taken === "gap" && tries < MAX_TRIES; tries++) {
      record = await this.fetch(message.run);
      if (!record) return;
      taken = message.seq <= record.seq ? "old" : apply(record, message);
    }
    if (record && taken !== "gap") this.onChange(record);
  }

  /**
   * Bring a run up to date with the server.
   *
   * @param {string} run
   * @returns {Promise<RunRecord | null>} Null where nobody knows it.
   */
  fetch(run) {
    const going = this.asked.get(run);
    if (going) return going;
    const asked = this.ask(run).finally(() => this.asked.delete(run));
    this.asked.set(run, asked);
    return asked;
  }

  async ask(run) {
    const { status, body } = await this.server.run(run, this.get(run)?.seq ?? 0);
    const known = this.get(run); // messages may have come meanwhile
    if (status === 200 && body) {
      const record = withSnapshot(known, body);
      this.runs.set(run, record);
      return record;
    }
    if (status === 404 && known?.state === "running") known.state = "lost";
    return known;
  }

  /**
   * Tell of a run again, after bringing it up to date.
   *
   * @param {string} run
   * @returns {Promise<void>}
   */
  async refresh(run) {
    const record = await this.fetch(run);
    if (record) this.onChange(record);
  }
}

/**
 * Which run each node shows: one that goes on, else the newest that the server knows, else the one that the workflow
 * remembers.
 *
 * @param {Array<{key: string, remembered: string | null}>} nodes
 * @param {any[]} heads Of GET /graft/runs, oldest first.
 * @param {(head: any) => string | null} keyOf The key of the node that a run belongs to.
 * @returns {Map<string, string>} Run by key.
 */
export function chooseRuns(nodes, heads, keyOf) {
  const chosen = new Map();
  for (const { key, remembered } of nodes) if (remembered) chosen.set(key, remembered);
  const keys = new Set(nodes.map((node) => node.key));
  const going = new Set();
  for (const head of heads) {
    const key = keyOf(head);
    if (key === null || !keys.has(key) || (going.has(key) && head.state !== "running")) continue;
    chosen.set(key, head.run);
    if (head.state === "running") going.add(key);
  }
  return chosen;
}
