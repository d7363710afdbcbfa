// SPDX-License-Identifier: Apache-2.0
// How the training panel looks, in ComfyUI's own colors. Sizes are in em: the panel's text grows when zoomed out.

export const COLORS = {
  loss: "#3b8eea",
  validation: "#e8932f",
  lr: "#3fa66b",
  grad_norm: "#a371f7",
  speed: "#2aa5a0",
  memory: "#d2698f",
  sample: "#e8932f",
  saved: "#3fa66b",
};

export const CSS = `
.graft-panel { font: 11px/1.35 system-ui, sans-serif; color: var(--input-text, #ddd);
  background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #444); border-radius: 6px;
  user-select: none; }
.graft-panel button { font: inherit; color: inherit; background: none; border: 1px solid transparent;
  border-radius: 4px; padding: 0.1em 0.5em; cursor: pointer; white-space: nowrap; }
.graft-panel button:hover { border-color: var(--border-color, #555); }
.graft-panel button:focus-visible, .graft-viewer button:focus-visible { outline: 2px solid #3b8eea; }
.graft-panel button[aria-pressed="true"] { background: rgba(128, 128, 128, 0.28); }
.graft-head { display: flex; gap: 0.6em; align-items: center; padding: 0.45em 0.7em 0.25em; white-space: nowrap; }
.graft-state { font-weight: 600; }
.graft-state::before { content: ""; display: inline-block; width: 0.6em; height: 0.6em; margin-right: 0.45em;
  border-radius: 50%; background: #8b949e; }
.graft-panel[data-state="running"] .graft-state::before { background: #3b8eea; }
.graft-panel[data-state="done"] .graft-state::before,
.graft-panel[data-state="finished"] .graft-state::before { background: #3fa66b; }
.graft-panel[data-state="interrupted"] .graft-state::before { background: #e8932f; }
.graft-panel[data-state="error"] .graft-state::before, .graft-panel[data-state="lost"] .graft-state::before {
  background: #e5534b; }
.graft-gap { flex: 1; }
.graft-rest { opacity: 0.75; overflow: hidden; text-overflow: ellipsis; }
.graft-bar { height: 2px; flex: none; background: rgba(128, 128, 128, 0.25); }
.graft-bar > div { height: 100%; width: 0; background: #3b8eea; }
.graft-values { display: flex; flex-wrap: wrap; gap: 0 0.9em; padding: 0.3em 0.7em 0; max-height: 2.8em; flex: none;
  overflow: hidden; font-variant-numeric: tabular-nums; }
.graft-values > span { white-space: nowrap; }
.graft-values b { font-weight: 600; }
.graft-tools { display: flex; gap: 0.15em; padding: 0.2em 0.5em; align-items: center; flex: none; overflow: hidden; }
.graft-panel .graft-ask { border-color: var(--border-color, #555); }
.graft-note { flex: none; padding: 0.2em 0.7em 0.4em; max-height: 6.5em; overflow: auto; user-select: text;
  overflow-wrap: anywhere; white-space: pre-line; cursor: pointer; }
.graft-note[data-open="false"] { max-height: 1.35em; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
.graft-note[data-kind="warning"] { color: color-mix(in srgb, #e8932f 70%, var(--input-text, #ddd)); }
.graft-note[data-kind="error"] { color: color-mix(in srgb, #e5534b 75%, var(--input-text, #ddd)); }
.graft-strip { flex: none; display: flex; align-items: stretch; gap: 3px; padding: 0 0.5em 0.45em; min-width: 0; }
.graft-thumbs { display: flex; gap: 3px; overflow-x: auto; min-width: 0; flex: 1; scrollbar-width: thin; }
.graft-panel .graft-thumb { position: relative; padding: 0; flex: none; line-height: 0; height: 64px; min-width: 40px; }
.graft-thumb img { height: 100%; border-radius: 3px; display: block; }
.graft-thumb img.graft-gone { opacity: 0.2; }
.graft-thumb span { position: absolute; left: 0; right: 0; bottom: 0; line-height: 1.3; font-size: 0.85em; color: #fff;
  background: rgba(0, 0, 0, 0.55); border-radius: 0 0 3px 3px; text-align: center; }
.graft-which { display: flex; flex-direction: column; justify-content: center; align-items: center; flex: none; }
.graft-viewer { position: fixed; inset: 0; z-index: 10000; display: flex; flex-direction: column; gap: 10px;
  padding: 14px 18px; box-sizing: border-box; background: rgba(0, 0, 0, 0.86); color: #eee;
  font: 13px/1.4 system-ui, sans-serif; }
.graft-viewer button { font: inherit; color: inherit; background: rgba(255, 255, 255, 0.08); border: 1px solid #666;
  border-radius: 4px; padding: 2px 10px; cursor: pointer; }
.graft-viewer button[aria-pressed="true"] { background: rgba(59, 142, 234, 0.5); }
.graft-viewer-head, .graft-viewer-foot { display: flex; gap: 10px; align-items: center; flex: none; }
.graft-viewer-title { flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.graft-viewer-foot input { flex: 1; accent-color: #3b8eea; }
.graft-stage { position: relative; flex: 1; min-height: 0; touch-action: none; cursor: ew-resize; }
.graft-stage img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain;
  image-rendering: auto; user-select: none; -webkit-user-drag: none; }
.graft-stage.graft-small img { image-rendering: pixelated; }
.graft-divider { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 3px #000; pointer-events: none; }
.graft-side { position: absolute; bottom: 6px; padding: 1px 8px; background: rgba(0, 0, 0, 0.6); border-radius: 4px; }
`;
