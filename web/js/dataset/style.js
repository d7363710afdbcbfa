// SPDX-License-Identifier: Apache-2.0
// How the dataset panel looks; colors are the host's, so that it follows the theme.

/** Of a panel whose root has the class graft-set. */
export const PANEL_CSS = `
.graft-set { font: calc(11px * var(--graft-text, 1))/1.3 sans-serif; color: var(--input-text, #ddd); gap: 4px; }
.graft-set [hidden] { display: none !important; }
.graft-set button, .graft-set select {
  font: inherit; color: inherit; background: var(--comfy-input-bg, #222);
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px; padding: 2px 6px; cursor: pointer; }
.graft-set button:focus-visible, .graft-set-grid:focus-visible { outline: 2px solid #4aa3ff; outline-offset: -2px; }
.graft-set-head { display: flex; gap: 4px; flex: 0 0 auto; align-items: stretch; }
.graft-set .graft-set-toggle {
  flex: 1 1 0; min-width: 0; text-align: left; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.graft-set[data-open="true"] .graft-set-toggle { white-space: normal; }
.graft-set[data-open="false"] .graft-set-refresh, .graft-set[data-open="false"] .graft-set-choice,
.graft-set[data-open="false"] .graft-set-body { display: none; }
.graft-set-body { flex: 1 1 0; min-height: 0; display: flex; flex-direction: column; gap: 4px; position: relative; }
.graft-set-status:empty, .graft-set-said:empty, .graft-set-buckets:empty { display: none; }
.graft-set-status { padding: 2px 4px; opacity: .85; }
.graft-set-said, .graft-set-buckets {
  flex: 0 1 auto; max-height: calc(5.2em + 6px); overflow-y: auto; padding: 2px 4px;
  background: var(--comfy-input-bg, #222); border-radius: 4px; }
.graft-set p { margin: 0 0 2px; white-space: pre-wrap; overflow-wrap: anywhere; }
.graft-set-error { color: color-mix(in srgb, var(--error-text, #ff4444) 65%, var(--input-text, #ddd)); }
.graft-set-odd { color: color-mix(in srgb, #c98200 75%, var(--input-text, #ddd)); }
.graft-set-bucket { display: grid; grid-template-columns: 7.5em 1fr 3.5em; gap: 6px; align-items: center; }
.graft-set-bucket > :last-child { text-align: right; }
.graft-set-bar { height: .7em; border-radius: 2px; background: rgba(128, 128, 128, .2); overflow: hidden; }
.graft-set-bar > span { display: block; height: 100%; min-width: 1px; background: #4aa3ff; }
.graft-set-filter { display: flex; gap: 4px; align-items: center; flex: 0 0 auto; cursor: pointer; width: max-content; }
.graft-set-filter input { margin: 0; }
.graft-set-grid { flex: 1 1 0; min-height: 0; overflow-y: auto; overflow-x: hidden; scrollbar-gutter: stable; }
.graft-set-sheet { position: relative; width: 100%; }
.graft-set .graft-set-cell {
  position: absolute; left: 0; top: 0; box-sizing: border-box; padding: 2px; display: flex; flex-direction: column;
  overflow: hidden; text-align: left; contain: strict; }
.graft-set .graft-set-cell[data-state="odd"] { border-color: #c98200; }
.graft-set .graft-set-cell[data-state="error"] { border-color: var(--error-text, #ff4444); }
.graft-set-picture {
  flex: 1 1 0; min-height: 0; width: 100%; position: relative; display: flex; align-items: center;
  justify-content: center; background: rgba(128, 128, 128, .12); opacity: 1; }
.graft-set-picture img { max-width: 100%; max-height: 100%; width: 100%; height: 100%; object-fit: contain; }
.graft-set-badge {
  position: absolute; left: 0; bottom: 0; max-width: 100%; box-sizing: border-box; padding: 0 4px; color: #fff;
  background: #7d5200; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; border-radius: 0 3px 0 0; }
.graft-set-cell[data-state="error"] .graft-set-badge { background: #a61b1b; }
.graft-set-name { opacity: .75; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; flex: 0 0 auto; }
.graft-set-caption {
  flex: 0 0 auto; height: 2.6em; overflow: hidden; overflow-wrap: anywhere; display: -webkit-box;
  -webkit-box-orient: vertical; -webkit-line-clamp: 2; }
.graft-set-detail:empty { display: none; }
.graft-set-detail {
  position: absolute; inset: 0; overflow-y: auto; padding: 8px; box-sizing: border-box; user-select: text;
  background: var(--comfy-menu-bg, #353535); border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px; }
.graft-set-detail img { max-width: 128px; max-height: 128px; display: block; margin-bottom: 4px; }
.graft-set-detail .graft-set-shut { position: sticky; top: 0; float: right; font-size: 1.3em; padding: 0 8px; }
.graft-set-title { font-weight: bold; }
.graft-set-text { border-top: 1px solid rgba(128, 128, 128, .4); padding-top: 4px; margin-top: 4px !important; }
`;
