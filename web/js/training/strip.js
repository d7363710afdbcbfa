// SPDX-License-Identifier: Apache-2.0
// The samples of a run as a strip, by step; a click shows one in full size.

import { element, setText } from "../dom.js";
import { Viewer } from "./viewer.js";

const LINES = 80; // thumbnails at most; the viewer has all

export class Strip {
  /** @param {(image: any, seq: number, isSmall: boolean) => string} urlOf Address of a picture of a sample. */
  constructor(urlOf) {
    this.urlOf = urlOf;
    this.which = 0;
    /** @type {any[]} */
    this.samples = [];
    this.key = "";
    this.isHeld = false; // somebody looks at earlier ones
    this.thumbs = element("div", { class: "graft-thumbs", attributes: { "data-capture-wheel": "true" } });
    this.label = element("span", {});
    this.chooser = element("div", { class: "graft-which" },
      element("button", { text: "\u25b4", title: "the prompt before", on: { click: () => this.turn(-1) } }),
      this.label,
      element("button", { text: "\u25be", title: "the next prompt", on: { click: () => this.turn(1) } }),
    );
    this.root = element("div", { class: "graft-strip", style: { display: "none" } }, this.chooser, this.thumbs);
    this.thumbs.addEventListener("wheel", (event) => this.scroll(event), { passive: false });
  }

  /**
   * @param {any[]} samples Events of the kind `sample`, oldest first.
   * @param {number} made Which history they are of.
   */
  show(samples, made) {
    const shown = samples.filter((sample) => sample.images?.length);
    const key = `${made} ${this.which} ${shown.length}`;
    this.samples = shown;
    this.root.style.display = shown.length ? "" : "none";
    if (key === this.key) return;
    const isGrown = this.key.startsWith(`${made} ${this.which} `) && this.thumbs.children.length < LINES;
    if (!isGrown) this.thumbs.replaceChildren();
    this.key = key;
    const most = Math.max(0, ...shown.map((sample) => sample.images.length));
    this.chooser.style.display = most > 1 ? "" : "none";
    setText(this.label, `${this.which + 1}/${most}`);
    const first = Math.max(0, shown.length - LINES);
    const next = first + this.thumbs.children.length;
    this.thumbs.append(...shown.slice(next).map((sample, i) => this.thumb(sample, next + i)));
    this.toEnd();
  }

  /** Once more with each picture that arrives: only then it has its width. */
  toEnd() {
    if (!this.isHeld) this.thumbs.scrollLeft = this.thumbs.scrollWidth;
  }

  thumb(sample, index) {
    const which = Math.min(this.which, sample.images.length - 1);
    const prompt = sample.prompts?.[which];
    const image = element("img", {
      attributes: { src: this.urlOf(sample.images[which], sample.seq, true), alt: "", draggable: "false" },
      on: { error: () => image.classList.add("graft-gone"), load: () => this.toEnd() },
    });
    return element("button", {
      class: "graft-thumb",
      title: `step ${sample.step}${prompt ? `\n${prompt}` : ""}`,
      attributes: { type: "button" },
      on: { click: () => this.open(index) },
    }, image, element("span", { text: String(sample.step) }));
  }

  open(index) {
    const shots = this.samples.map((sample) => ({
      step: sample.step,
      urls: sample.images.map((image) => this.urlOf(image, sample.seq, false)),
      prompts: sample.prompts ?? [],
    }));
    new Viewer(shots, index, this.which).open();
  }

  turn(by) {
    const most = Math.max(1, ...this.samples.map((sample) => sample.images.length));
    this.which = (this.which + by + most) % most;
    this.show(this.samples, Number(this.key.split(" ")[0]));
  }

  scroll(event) {
    if (this.thumbs.scrollWidth <= this.thumbs.clientWidth) return;
    event.preventDefault();
    event.stopPropagation();
    this.thumbs.scrollLeft += event.deltaY + event.deltaX;
    const { scrollLeft, clientWidth, scrollWidth } = this.thumbs;
    this.isHeld = scrollLeft + clientWidth < scrollWidth - 4;
  }
}
