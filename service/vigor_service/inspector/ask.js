// The form: a prompt and its completions, which form a group.

import { byId, element, setText } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { Unreadable, linked, read } from "./request.js";

/** Set up the form with the request in the URL of the page, or else with the first example. */
export function setUpForm() {
  byId("examples").append(...EXAMPLES.map((example) =>
    element("button", { type: "button", className: "quiet", textContent: example.name, onclick: () => fillExample(example) })));
  byId("add").onclick = () => addCompletion({ text: "", ended: true }).focus();
  byId("fill").onclick = fillFromJson;
  addEventListener("hashchange", fillFromLink);
  if (!fillFromLink()) fillExample(EXAMPLES[0]);
}

function fillFromLink() {
  const found = linked();
  if (found !== null) fill(found);
  return found !== null;
}

function fillFromJson() {
  try {
    fill(read(byId("json").value));
    byId("import").open = false;
    setText(byId("json-problem"), "");
  } catch (error) {
    if (!(error instanceof Unreadable)) throw error;
    setText(byId("json-problem"), error.message);
  }
}

function fillExample({ prompt, completions }) {
  fill({ prompt, completions: completions.map((text) => ({ text, ended: true })) });
}

/** Return the form's group, in the format that the service accepts. */
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

/** Fill the form. A prompt, kind or reward that is not given stays as it is; completions are replaced. */
function fill({ prompt, kind, completions, reward }) {
  if (prompt !== undefined) byId("prompt").value = prompt;
  if (kind !== undefined) byId("prompt-kind").value = kind;
  if ([...byId("reward").options].some(({ value }) => value === reward)) byId("reward").value = reward;
  byId("completions").replaceChildren();
  completions.forEach(addCompletion);
}

function addCompletion({ text, ended: isEnded }) {
  const rows = Math.min(4, text.split("\n").length);
  const area = element("textarea", { value: text, rows, spellcheck: false, dir: "auto" });
  const ended = element("label", { className: "inline" },
    element("input", { type: "checkbox", checked: isEnded }), " complete (append EOS)");
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
    row.querySelector("input").setAttribute("aria-label", `Completion ${index + 1} is complete (append EOS)`);
    row.querySelector("button").setAttribute("aria-label", `Remove completion ${index + 1}`);
  });
}
