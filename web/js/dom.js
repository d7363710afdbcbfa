// SPDX-License-Identifier: Apache-2.0
// Elements of the page, made without markup: what a name or a caption says is always shown as text.

/**
 * @typedef {object} ElementOptions
 * @property {string} [class] Names of classes.
 * @property {string} [text] Shown as it is.
 * @property {string} [title] Shown when the pointer rests.
 * @property {Record<string, string>} [style] By CSS name in camelCase, or a variable's name.
 * @property {Record<string, (event: any) => void>} [on] Listeners by event.
 * @property {Record<string, string | number | boolean | null | undefined>} [attributes] `null`, `undefined` and
 *   `false` leave one out, `true` sets it empty.
 */

/**
 * Make an element.
 *
 * @param {string} tag
 * @param {ElementOptions} [options]
 * @param {...(Node | string | null | undefined)} children Strings become text.
 * @returns {any} The element, of the type that `tag` names.
 */
export function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  if (options.class) made.className = options.class;
  if (options.text !== undefined) made.textContent = options.text;
  if (options.title !== undefined) made.title = options.title;
  setStyle(made, options.style ?? {});
  setAttributes(made, options.attributes ?? {});
  for (const [name, listener] of Object.entries(options.on ?? {})) made.addEventListener(name, listener);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/**
 * Set CSS properties; names that begin with `--` are variables.
 *
 * @param {HTMLElement} target
 * @param {Record<string, string>} style
 */
export function setStyle(target, style) {
  for (const [name, value] of Object.entries(style)) {
    if (name.startsWith("--")) target.style.setProperty(name, value);
    else target.style[name] = value;
  }
}

/**
 * @param {HTMLElement} target
 * @param {Record<string, string | number | boolean | null | undefined>} attributes
 */
export function setAttributes(target, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) target.removeAttribute(name);
    else target.setAttribute(name, value === true ? "" : String(value));
  }
}

/**
 * Set an element's text, without touching the page where it is the same.
 *
 * @param {Node} target
 * @param {string} text
 */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/**
 * Add a style sheet to the page, once for each id.
 *
 * @param {string} id
 * @param {string} css
 */
export function addStyles(id, css) {
  if (document.getElementById(id)) return;
  document.head.append(element("style", { text: css, attributes: { id } }));
}
