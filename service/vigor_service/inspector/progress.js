// Shows what the page waits for and for how long, with a button to cancel.

import { byId, setText } from "./dom.js";

let timer = null;

/** `onCancel` is called when the reader cancels the wait. */
export function showProgress(text, { onCancel }) {
  hideProgress();
  const began = performance.now();
  const tell = () => setText(byId("elapsed"), `${Math.floor((performance.now() - began) / 1000)} s`);
  timer = setInterval(tell, 1000);
  tell();
  byId("cancel").onclick = onCancel;
  byId("progress").hidden = false;
  setText(byId("progress-text"), text);
  document.body.setAttribute("aria-busy", "true");
}

export function hideProgress() {
  clearInterval(timer);
  setText(byId("progress-text"), "");
  byId("progress").hidden = true;
  document.body.removeAttribute("aria-busy");
}
