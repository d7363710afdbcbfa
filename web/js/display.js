// SPDX-License-Identifier: Apache-2.0
// An element as a row of a node: shown, never saved, alike in the classic and in the Vue renderer.

import { setStyle } from "./dom.js";

/**
 * @typedef {object} DisplayOptions
 * @property {number | (() => number)} [minHeight] Pixels that the row has at least.
 * @property {number | (() => number | undefined)} [maxHeight] Pixels that it has at most; without a number it takes
 *   what is left of the node.
 * @property {number} [minWidth] Pixels that the node is made wide, when it is new.
 * @property {() => void} [dispose] Called when the node is removed.
 */

/**
 * Add `root` to `node` as its last row. It has no value: neither the prompt nor the workflow knows of it.
 *
 * @param {any} app The host's application.
 * @param {any} node
 * @param {string} name Of the widget.
 * @param {HTMLElement} root A flex column is made of it.
 * @param {DisplayOptions} [options]
 * @returns {any} The widget, null where the host has no such widgets.
 */
export function addDisplay(app, node, name, root, options = {}) {
  const { minHeight = 230, maxHeight, minWidth = 340, dispose } = options;
  const [least, most] = [minHeight, maxHeight].map((one) => (typeof one === "function" ? one : () => one));
  if (typeof node.addDOMWidget !== "function") return null;
  // Vue nodes give the rest of their height to rows of this class only.
  if (!most()) root.classList.add("widget-expands");
  setStyle(root, {
    width: "100%", height: "100%", minHeight: `${least()}px`, boxSizing: "border-box",
    display: "flex", flexDirection: "column", overflow: "hidden",
    contain: "inline-size", // what is in it never makes it wider than the node
  });
  passWheel(app, root);
  const widget = node.addDOMWidget(name, "graft_display", root, {
    serialize: false, // not in the prompt
    hideOnZoom: false,
    hideInPanel: true,
    getMinHeight: least,
    getMaxHeight: most,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false; // not in the workflow
  // The side panel of newer frontends writes its own width on the widget that it shares with the node.
  Object.defineProperty(widget, "width", { get: () => undefined, set() {}, configurable: true });
  if (dispose) chain(node, "onRemoved", dispose);
  growTo(node, minWidth);
  return widget;
}

/**
 * Zoom of the graph's view, 1 = 100 %.
 *
 * @param {any} app
 * @returns {number}
 */
export function viewScale(app) {
  return app.canvas?.ds?.scale ?? 1;
}

/**
 * Call `after` whenever the host calls `target[name]`, after what is there already.
 *
 * @param {any} target A node or a prototype.
 * @param {string} name
 * @param {(this: any, ...values: any[]) => void} after
 */
export function chain(target, name, after) {
  const before = target[name];
  target[name] = function (...values) {
    const result = before?.apply(this, values);
    after.apply(this, values);
    return result;
  };
}

/** The classic canvas does not see the wheel over an element; what scrolls itself has `data-capture-wheel`. */
function passWheel(app, root) {
  root.addEventListener(
    "wheel",
    (event) => {
      if (window.LiteGraph?.vueNodesMode || event.target.closest?.("[data-capture-wheel]")) return;
      app.canvas?.processMouseWheel?.(event);
    },
    { passive: false },
  );
}

function growTo(node, minWidth) {
  const needed = node.computeSize();
  node.setSize([Math.max(node.size[0], minWidth, needed[0]), Math.max(node.size[1], needed[1])]);
}
