// Asks for the API key if the service needs one.

import { forgetKey, hasKey, setKey } from "./api.js";
import { byId, setText } from "./dom.js";

/** `onKey` is called when a key was entered. */
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

  /** Ask for the key unless the reader declined before; with `insist`, ask even then. */
  ask({ insist = false } = {}) {
    if (byId("key-dialog").open || (this.wasDeclined && !insist)) return;
    if (hasKey()) setText(byId("key-message"), "The service does not accept this key. Enter another one.");
    forgetKey();
    byId("key-dialog").showModal();
  }
}
