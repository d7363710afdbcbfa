// SPDX-License-Identifier: Apache-2.0
// Asks the server about a dataset: a look until it is done, then pages of pictures. Knows nothing of the page.

export const PAGE = 60;
const MOST_PAGES = 60;
const PAUSE_MS = 40;
const NO_PROGRESS_MS = 400;

/**
 * @typedef {(path: string, body?: object) => Promise<any>} Ask Answers JSON; null where the server has no answer.
 */

const rest = (ms) => new Promise((done) => setTimeout(done, ms));

export class DatasetSource {
  /** @param {Ask} ask */
  constructor(ask) {
    this.ask = ask;
    this.turn = 0;
    this.clear();
  }

  /** Forget the dataset; answers that are under way are dropped. */
  clear() {
    this.turn += 1;
    this.id = null;
    this.summary = null;
    this.total = 0;
    this.pages = new Map();
    this.asked = new Set();
    this.isOdd = false;
  }

  /**
   * Look at a dataset until it is done.
   *
   * @param {object} wanted What is posted: a plan, or the id of what a node made.
   * @param {(told: any) => void} progress Called with what is known so far.
   * @returns {Promise<"done" | "gone" | "dropped">}
   */
  async look(wanted, progress) {
    this.clear();
    const turn = this.turn;
    let body = wanted;
    let read = -1;
    for (;;) {
      const told = await this.ask("/graft/datasets", body);
      if (turn !== this.turn) return "dropped";
      if (!told) return "gone";
      if (told.done) {
        this.id = told.id;
        this.summary = told.summary;
        this.total = told.summary.pictures + told.summary.refused;
        return "done";
      }
      progress(told);
      body = { id: told.id };
      await rest(told.read === read ? NO_PROGRESS_MS : PAUSE_MS);
      if (turn !== this.turn) return "dropped";
      read = told.read;
    }
  }

  /**
   * Show all pictures, or those that something is odd about.
   *
   * @param {boolean} isOdd
   */
  filter(isOdd) {
    this.isOdd = isOdd;
    this.pages = new Map();
    this.asked = new Set();
    this.total = isOdd ? this.summary.odd : this.summary.pictures + this.summary.refused;
  }

  /**
   * @param {number} place Among the pictures that are shown.
   * @returns {any} What is known of a picture; undefined where its page was not asked for yet.
   */
  row(place) {
    return this.pages.get(Math.floor(place / PAGE))?.[place % PAGE];
  }

  /**
   * Ask for a page, once.
   *
   * @param {number} page
   * @returns {Promise<boolean>} Whether there is something new to show.
   */
  async load(page) {
    const key = `${this.isOdd}:${page}`;
    if (!this.id || this.pages.has(page) || this.asked.has(key)) return false;
    this.asked.add(key);
    const turn = this.turn;
    const isOdd = this.isOdd;
    const only = isOdd ? "&only=odd" : "";
    const path = `/graft/datasets/${this.id}/pictures?first=${page * PAGE}&count=${PAGE}${only}`;
    const told = await this.ask(path);
    if (turn !== this.turn || isOdd !== this.isOdd) return false;
    this.asked.delete(key);
    if (!told) return false;
    this.pages.set(page, told.rows);
    while (this.pages.size > MOST_PAGES) this.pages.delete(this.pages.keys().next().value);
    return true;
  }

  /**
   * @param {number} row Number of a picture in the dataset.
   * @returns {Promise<any>} All that is known of it; null where it is gone.
   */
  async picture(row) {
    return this.id ? this.ask(`/graft/datasets/${this.id}/pictures/${row}`) : null;
  }

  /**
   * @param {number} row Number of a picture in the dataset.
   * @returns {string} Path of its thumbnail on the server.
   */
  thumbnail(row) {
    return `/graft/datasets/${this.id}/thumbnails/${row}`;
  }
}
