// SPDX-License-Identifier: Apache-2.0
// What one node's picture of blocks knows: the layout of its model, the texts of its widgets, what they select.

import { modelSource } from "../source.js";

const WAIT_MS = 150;
const MOST_UNDONE = 50;
const FAMILY = "graft_family";
const NO_FILE = "none";

/**
 * @typedef {object} Field A text widget in the block language.
 * @property {string} widget Its name.
 * @property {"blocks" | "keep" | "strengths"} kind As the server's routes have it.
 * @property {string} [file] The widget that names a LoRA file, whose layers are chosen among.
 * @property {string} [adapter] The input that takes the file's place where something is connected.
 * @property {string} [network] The widget that names the kind of adapter.
 * @property {string} [fixed] The kind of adapter, where no widget names it.
 * @property {string} [options] The widget with its further settings.
 */

const layouts = new Map();

export class BlocksState {
  /**
   * @param {any} node
   * @param {Field[]} fields
   * @param {(path: string, body: object) => Promise<any>} ask
   * @param {() => void} written Called after a widget was written to.
   */
  constructor(node, fields, ask, written) {
    this.node = node;
    this.fields = fields;
    this.ask = ask;
    this.written = written;
    this.listeners = new Set();
    this.layout = null;
    this.matches = fields.map(() => null);
    this.heats = fields.map(() => null);
    this.undone = fields.map(() => []);
    this.error = "";
    this.isLoading = true;
    this.known = "";
    this.turn = 0;
    this.queue = Promise.resolve();
  }

  /** Look whether anything has changed, however it was changed; cheap, to be called a few times a second. */
  tick() {
    const key = JSON.stringify([this.source(), this.fields.map((field, at) => this.question(at))]);
    if (key === this.known) return;
    this.known = key;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load(), WAIT_MS);
  }

  /** Ask everything anew, at the next look. */
  forget() {
    this.known = "";
  }

  dispose() {
    clearTimeout(this.timer);
    this.turn += 1;
    this.listeners.clear();
  }

  /**
   * @returns {{source: string, name: string} | null} Where the layout comes from.
   */
  source() {
    const found = modelSource(this.node);
    const family = this.family();
    if (found && !(family && this.refused === JSON.stringify(found))) return found;
    return family ? { source: "family", name: family } : found;
  }

  /** The family that was chosen for a node without a model. */
  family() {
    return String(this.node.properties?.[FAMILY] ?? "");
  }

  /** @param {string} name */
  setFamily(name) {
    this.node.properties ??= {};
    this.node.properties[FAMILY] = name;
    this.written();
    this.tick();
  }

  /** @param {number} at A field's place. */
  text(at) {
    return String(this.widget(this.fields[at].widget)?.value ?? "");
  }

  /** Whether a field's text comes over a link, so that it cannot be written here. */
  isLinked(at) {
    return this.linked(this.fields[at].widget);
  }

  /** The LoRA file whose layers count; empty for none. */
  file(at) {
    const { file, adapter } = this.fields[at];
    if (!file || (adapter && this.linked(adapter)) || this.linked(file)) return "";
    const name = String(this.widget(file)?.value ?? "");
    return name === NO_FILE ? "" : name;
  }

  /** Write a field's text, as if it was typed. */
  write(at, text) {
    const widget = this.widget(this.fields[at].widget);
    if (!widget || this.isLinked(at) || widget.value === text) return;
    const past = this.undone[at];
    past.push(String(widget.value ?? ""));
    if (past.length > MOST_UNDONE) past.shift();
    this.put(widget, text);
  }

  /** Take the last change back that was made through the picture. */
  undo(at) {
    const widget = this.widget(this.fields[at].widget);
    const text = this.undone[at].pop();
    if (widget && text !== undefined) this.put(widget, text);
  }

  /**
   * Change the text by a click; clicks follow each other. What is there is turned on or off as the text has it then,
   * which the picture may not show yet.
   *
   * @param {number} at
   * @param {import("./map.js").Place} place
   * @param {number | null} value Of strengths.
   * @returns {Promise<void>}
   */
  pick(at, place, value) {
    this.queue = this.queue.then(async () => {
      if (this.isLinked(at)) return;
      const before = this.text(at);
      const answer = await this.ask("blocks/pick", { ...this.question(at), ...place, on: null, value });
      if (answer.text === undefined) this.error = answer.error;
      else if (this.text(at) === before) this.write(at, answer.text);
      this.tell();
    });
    return this.queue;
  }

  /** Ask for |dW| of the field's file, or forget it. */
  async heat(at, isOn) {
    this.heats[at] = null;
    if (isOn && this.file(at)) {
      const answer = await this.ask("blocks/heat", { ...this.source(), file: this.file(at) });
      if (answer.size) this.heats[at] = answer.size;
      else this.error = answer.error;
    }
    this.tell();
  }

  async load() {
    const turn = (this.turn += 1);
    const source = this.source();
    const layout = source ? await this.layoutOf(source) : null;
    if (turn !== this.turn) return;
    this.isLoading = false;
    const isOther = layout !== this.layout;
    this.layout = layout?.groups ? layout : null;
    this.error = layout?.error ?? (source ? "" : "No model file is found upstream: choose its family.");
    if (layout?.error && source.source !== "family") this.refused = JSON.stringify(source);
    if (isOther) this.heats = this.fields.map(() => null);
    const asked = this.fields.map((field, at) => this.layout && this.ask("blocks/match", this.question(at)));
    const matches = await Promise.all(asked);
    if (turn !== this.turn) return;
    this.matches = matches.map((match) => (match?.on ? match : null));
    this.error ||= matches.find((match) => match && !match.on)?.error ?? "";
    this.tell();
  }

  async layoutOf(source) {
    const key = JSON.stringify(source);
    if (!layouts.has(key)) layouts.set(key, this.ask("blocks/layout", source));
    const layout = await layouts.get(key);
    if (!layout.groups) layouts.delete(key);
    return layout;
  }

  question(at) {
    const { kind, network, fixed, options } = this.fields[at];
    const body = { ...this.source(), kind, text: this.text(at), file: this.file(at) };
    if (fixed) body.network = fixed;
    if (network) body.network = String(this.widget(network)?.value ?? "lora");
    if (options) body.options = String(this.widget(options)?.value ?? "");
    return body;
  }

  widget(name) {
    return this.node.widgets?.find((widget) => widget.name === name);
  }

  linked(name) {
    const input = this.node.inputs?.find((one) => one.name === name);
    return input?.link !== null && input?.link !== undefined;
  }

  put(widget, text) {
    widget.value = text;
    widget.callback?.(text);
    this.written();
    this.tick();
  }

  tell() {
    for (const listener of this.listeners) listener();
  }
}
