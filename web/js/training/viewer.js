// SPDX-License-Identifier: Apache-2.0
// One sample in full size over the page, with the first one of the run behind a divider to drag.

import { element, setText } from "../dom.js";

/**
 * @typedef {object} Shot
 * @property {number} step
 * @property {string[]} urls One for each prompt.
 * @property {string[]} prompts May be shorter, or empty.
 */

export class Viewer {
  /**
   * @param {Shot[]} shots Oldest first, at least one.
   * @param {number} index Of the one to show.
   * @param {number} which Of its pictures.
   */
  constructor(shots, index, which) {
    this.shots = shots;
    this.index = index;
    this.which = which;
    this.part = 0.5;
    this.isComparing = shots.length > 1;
    this.before = element("img", { attributes: { alt: "", draggable: "false" } });
    this.after = element("img", { attributes: { alt: "", draggable: "false" } });
    this.divider = element("div", { class: "graft-divider" });
    this.sides = ["left", "right"].map((side) => element("span", { class: "graft-side", style: { [side]: "8px" } }));
    this.title = element("div", { class: "graft-viewer-title" });
    this.stage = element("div", { class: "graft-stage" }, this.after, this.before, this.divider, ...this.sides);
    this.slider = element("input", {
      title: "step",
      attributes: { type: "range", min: 0, max: shots.length - 1, step: 1, "aria-label": "step" },
      on: { input: () => this.go(Number(this.slider.value) - this.index) },
    });
    this.root = element("div", {
      class: "graft-viewer",
      attributes: { role: "dialog", "aria-modal": "true", "aria-label": "samples", tabindex: -1 },
    }, this.head(), this.stage, this.foot());
    this.keys = (event) => this.press(event);
    this.after.addEventListener("load", () => {
      this.stage.classList.toggle("graft-small", this.after.naturalHeight * 2 < this.stage.clientHeight);
    });
    this.listen();
  }

  /** Show it. */
  open() {
    document.body.append(this.root);
    document.addEventListener("keydown", this.keys, true);
    this.paint();
    this.root.focus();
  }

  close() {
    document.removeEventListener("keydown", this.keys, true);
    this.root.remove();
  }

  head() {
    const close = element("button", { text: "Close", title: "Esc", on: { click: () => this.close() } });
    this.link = element("a", {
      text: "Open the file",
      style: { color: "inherit" },
      attributes: { target: "_blank", rel: "noopener" },
    });
    return element("div", { class: "graft-viewer-head" }, this.title, this.link, close);
  }

  foot() {
    const turn = (text, title, by) => element("button", { text, title, on: { click: () => this.turn(by) } });
    const many = this.shots.some((shot) => shot.urls.length > 1);
    this.compare = element("button", {
      text: "Before / after",
      title: "The first sample of the run on the left",
      on: { click: () => this.toggle() },
    });
    return element("div", { class: "graft-viewer-foot" },
      this.shots.length > 1 ? this.compare : null,
      this.slider,
      ...(many ? [turn("\u2039 prompt", "Arrow up", -1), turn("prompt \u203a", "Arrow down", 1)] : []),
    );
  }

  listen() {
    const drag = (event) => {
      if (!this.isComparing || (event.type === "pointermove" && !event.buttons)) return;
      const box = this.stage.getBoundingClientRect();
      this.part = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      this.paintDivider();
    };
    this.stage.addEventListener("pointerdown", drag);
    this.stage.addEventListener("pointermove", drag);
    for (const name of ["pointerdown", "pointermove", "pointerup", "wheel", "contextmenu"]) {
      this.root.addEventListener(name, (event) => event.stopPropagation());
    }
  }

  press(event) {
    const moves = { ArrowLeft: () => this.go(-1), ArrowRight: () => this.go(1), ArrowUp: () => this.turn(-1),
      ArrowDown: () => this.turn(1), Escape: () => this.close(), c: () => this.toggle() };
    event.stopPropagation(); // the graph's own keys: Delete would remove the node
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  }

  go(by) {
    this.index = Math.min(this.shots.length - 1, Math.max(0, this.index + by));
    this.paint();
  }

  turn(by) {
    const count = this.shots[this.index].urls.length;
    this.which = (this.which + by + count) % count;
    this.paint();
  }

  toggle() {
    this.isComparing = !this.isComparing && this.shots.length > 1;
    this.paint();
  }

  paint() {
    const [first, shot] = [this.shots[0], this.shots[this.index]];
    const which = Math.min(this.which, shot.urls.length - 1);
    const prompt = shot.prompts[which];
    const number = shot.urls.length > 1 ? `  \u00b7  ${which + 1} of ${shot.urls.length}` : "";
    setText(this.title, `step ${shot.step}${number}${prompt ? `  \u00b7  ${prompt}` : ""}`);
    this.title.title = prompt ?? "";
    setSource(this.after, shot.urls[which]);
    setSource(this.before, first.urls[Math.min(which, first.urls.length - 1)]);
    this.link.href = shot.urls[which];
    this.slider.value = String(this.index);
    setText(this.sides[0], `step ${first.step}`);
    setText(this.sides[1], `step ${shot.step}`);
    this.compare.setAttribute("aria-pressed", String(this.isComparing));
    this.paintDivider();
  }

  paintDivider() {
    const shown = this.isComparing ? "" : "none";
    for (const one of [this.before, this.divider, ...this.sides]) one.style.display = shown;
    this.stage.style.cursor = this.isComparing ? "ew-resize" : "default";
    this.before.style.clipPath = `inset(0 ${100 * (1 - this.part)}% 0 0)`;
    this.divider.style.left = `${100 * this.part}%`;
  }
}

function setSource(image, url) {
  if (image.getAttribute("src") !== url) image.setAttribute("src", url);
}
