// SPDX-License-Identifier: Apache-2.0
// Questions to the pack's own server.

import { api } from "../../../scripts/api.js";

/**
 * Ask a route of ours; it never throws.
 *
 * @param {string} path Behind `/graft/`.
 * @param {object} body
 * @returns {Promise<any>} The answer; `{error}` where something is wrong with the question, `{error, isOff: true}`
 *   where the server has no answer to anything.
 */
export async function ask(path, body) {
  try {
    const response = await api.fetchApi(`/graft/${path}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const answer = await response.json();
    if (response.ok) return answer;
    return { error: String(answer?.error ?? response.status), isOff: response.status === 404 };
  } catch {
    return { error: "The server does not answer; what is typed counts all the same.", isOff: true };
  }
}

/**
 * Call `again` when the server is back after it was away.
 *
 * @param {() => void} again
 */
export function onReturn(again) {
  api.addEventListener("reconnected", again);
}
