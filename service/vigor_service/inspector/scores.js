// The table of one group's scores.

import { byId, element, setText, setWidth } from "./dom.js";
import { computed, count, shortDigest, significant, signed } from "./numbers.js";

/** Show the answer to `group`; `onPick` is called with the index of the completion whose norm is to be explained. */
export function showScores(answer, group, onPick) {
  const { completions } = answer.groups[0];
  const largest = Math.max(...completions.map((score) => score.scaled_grad_norm ?? 0));
  byId("rows").replaceChildren(...completions.map((score, index) =>
    row(score, index, group.completions[index].text, largest, () => onPick(index))));
  setText(byId("scored-with"), [
    `weights ${answer.weight_version} (${shortDigest(answer.weight_digest)})`,
    `${count(answer.usage.prompt_tokens, "prompt token")}, ${count(answer.usage.completion_tokens, "completion token")}`,
    computed(answer.timing.compute_seconds),
  ].join(" · "));
  byId("scores").hidden = false;
}

/** Mark the completion that is explained; null: none. */
export function markPicked(index) {
  [...byId("rows").children].forEach((row, position) => {
    row.querySelector("button").setAttribute("aria-pressed", position === index);
  });
}

function row(score, index, text, largest, onPick) {
  const bar = element("span", { className: "bar-fill" });
  setWidth(bar, (score.scaled_grad_norm ?? 0) / largest);
  const pick = element("button", { type: "button", className: "quiet", textContent: "Explain", onclick: onPick,
    "aria-pressed": "false", "aria-label": `Explain the norm of completion ${index + 1}` });
  pick.disabled = score.status !== "ok";
  return element("tr", {},
    element("th", { scope: "row" }, element("span", { className: "index", textContent: `${index + 1} ` }),
      element("span", { className: "text", textContent: text || "(empty)" })),
    cell("Tokens", count(score.num_tokens, "", "").trim()),
    cell("Norm", significant(score.grad_norm)),
    cell("Norm · √T", significant(score.scaled_grad_norm), element("span", { className: "bar-track" }, bar)),
    cell("Rank", signed(score.rank).replace("+", "")),
    cell("Reward", signed(score.reward).replace("-", "−")),
    cell("Log-prob.", significant(score.mean_logprob).replace("-", "−")),
    cell("Entropy", significant(score.mean_entropy)),
    cell("Certainty", significant(score.self_certainty)),
    element("td", { "data-label": "Status", textContent: score.status }),
    element("td", { className: "pick" }, pick));
}

function cell(label, text, ...more) {
  return element("td", { className: "number", "data-label": label }, text, ...more);
}
