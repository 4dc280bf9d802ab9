// The form: a prompt, its completions, and the group that they make.

import { byId, element } from "./dom.js";
import { EXAMPLES } from "./examples.js";

export function fillExamples() {
  byId("examples").append(...EXAMPLES.map((example) =>
    element("button", { type: "button", className: "quiet", textContent: example.name, onclick: () => fill(example) })));
  byId("add").onclick = () => addCompletion("").focus();
  fill(EXAMPLES[0]);
}

/** Return the group of the form, as the service takes it. */
export function group() {
  const prompt = byId("prompt").value;
  const given = byId("prompt-kind").value === "prompt" ? { prompt } : { messages: [{ role: "user", content: prompt }] };
  const rows = [...byId("completions").children];
  return {
    ...given,
    completions: rows.map((row) => ({
      text: row.querySelector("textarea").value,
      finish_reason: row.querySelector("input").checked ? "stop" : "length",
    })),
  };
}

function fill({ prompt, completions }) {
  byId("prompt").value = prompt;
  byId("completions").replaceChildren();
  completions.forEach(addCompletion);
}

function addCompletion(text) {
  const area = element("textarea", { value: text, rows: Math.min(4, text.split("\n").length), spellcheck: false });
  const ended = element("label", { className: "inline" },
    element("input", { type: "checkbox", checked: true }), " complete (append EOS)");
  const remove = element("button", { type: "button", className: "quiet", textContent: "Remove" });
  const row = element("li", {}, area, element("div", { className: "row-actions" }, ended, remove));
  remove.onclick = () => { row.remove(); number(); byId("add").focus(); };
  byId("completions").append(row);
  number();
  return area;
}

function number() {
  [...byId("completions").children].forEach((row, index) => {
    row.querySelector("textarea").setAttribute("aria-label", `Completion ${index + 1}`);
    row.querySelector("button").setAttribute("aria-label", `Remove completion ${index + 1}`);
  });
}
