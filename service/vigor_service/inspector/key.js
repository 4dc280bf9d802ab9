// Asks for the key where the service wants one.

import { forgetKey, hasKey, setKey } from "./api.js";
import { byId, setText } from "./dom.js";

/** `onKey` is called when a key was given. */
export class KeyDialog {
  constructor({ onKey }) {
    this.wasDeclined = false;
    byId("key-cancel").onclick = () => byId("key-dialog").close();
    byId("key-dialog").onclose = () => { this.wasDeclined = !hasKey(); };
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      setKey(byId("key").value.trim());
      byId("key").value = "";
      byId("key-dialog").close();
      onKey();
    };
  }

  /** Ask, unless it was declined; `insist` asks also then. */
  ask({ insist = false } = {}) {
    if (byId("key-dialog").open || (this.wasDeclined && !insist)) return;
    if (hasKey()) setText(byId("key-message"), "The service does not accept this key. Enter another one.");
    forgetKey();
    byId("key-dialog").showModal();
  }
}
