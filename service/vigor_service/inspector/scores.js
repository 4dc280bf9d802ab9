// The table of one group's scores.

import { byId, element, setText, setWidth } from "./dom.js";
import { computed, count, shortDigest, significant, signed } from "./numbers.js";

/** Each column's meaning, its unit, and which values are better; `of` returns the value by which rows are sorted. */
const COLUMNS = [
  { label: "Completion", hint: "In the order in which they were given", of: (_, index) => index },
  { label: "Tokens", hint: "Number of completion tokens that count in the loss", of: (score) => score.num_tokens },
  { label: "Norm", more: "smaller is better", of: (score) => score.grad_norm,
    hint: "L2 norm of the gradient of the mean negative log-likelihood, in nats" },
  { label: "Norm · √T", more: "smaller is better", of: (score) => score.scaled_grad_norm,
    hint: "The norm times the square root of the number of tokens: what vigor ranks" },
  { label: "Rank", more: "1 is best", of: (score) => score.rank, hint: "Within this group; equal values share their mean rank" },
  { label: "Reward", more: "larger is better", of: (score) => score.reward, hint: "From −1 for the last rank to 1 for the first" },
  { label: "Log-prob.", more: "nats", of: (score) => score.mean_logprob,
    hint: "Mean log-probability of a token; nearer to 0 means more certain" },
  { label: "Entropy", more: "nats", of: (score) => score.mean_entropy,
    hint: "Mean entropy of the distribution of the next token; smaller means more certain" },
  { label: "Certainty", more: "nats", of: (score) => score.self_certainty,
    hint: "Mean divergence of the model's distribution from the uniform one; larger means more certain" },
  { label: "Status", hint: "ok, or the reason why there is no norm", of: (score) => score.status },
];

/** Show the scores of `group`; `onPick` is called with the index of the completion whose norm is to be explained. */
export function showScores(answer, group, onPick) {
  const { completions } = answer.groups[0];
  const largest = Math.max(...completions.map((score) => score.scaled_grad_norm ?? 0));
  const rows = completions.map((score, index) =>
    row(score, index, group.completions[index].text, largest, () => onPick(index)));
  markBest(rows, completions);
  byId("columns").replaceChildren(...COLUMNS.map((column, index) => heading(column, index, rows, completions)),
    element("th", { scope: "col" }, element("span", { className: "unseen", textContent: "Attribution" })));
  byId("rows").replaceChildren(...rows);
  setText(byId("scored-with"), [
    `weights ${answer.weight_version} (${shortDigest(answer.weight_digest)})`,
    `${count(answer.usage.prompt_tokens, "prompt token")}, ${count(answer.usage.completion_tokens, "completion token")}`,
    computed(answer.timing.compute_seconds),
  ].join(" · "));
  byId("scores").hidden = false;
}

/** Mark the completion that is being explained; null marks none. */
export function markPicked(index) {
  [...byId("rows").children].forEach((row) => {
    row.querySelector("button").setAttribute("aria-pressed", Number(row.dataset.index) === index);
  });
}

/** Mark all completions of the best rank, unless all completions have the same rank. */
function markBest(rows, completions) {
  const ranks = completions.map(({ rank }) => rank).filter((rank) => rank !== null);
  const best = Math.min(...ranks);
  if (best === Math.max(...ranks)) return;
  completions.forEach(({ rank }, index) => {
    if (rank === best) rows[index].classList.add("best");
  });
}

function heading({ label, more, hint, of }, index, rows, completions) {
  const isText = label === "Completion" || label === "Status";
  const button = element("button", { type: "button", className: "sort", title: hint }, label);
  const made = element("th", { scope: "col", className: isText ? "" : "number", "aria-sort": "none" }, button,
    ...(more ? [element("span", { className: "unit", textContent: more })] : []));
  button.onclick = () => {
    const descends = made.getAttribute("aria-sort") === "ascending";
    for (const other of byId("columns").querySelectorAll("[aria-sort]")) other.setAttribute("aria-sort", "none");
    made.setAttribute("aria-sort", descends ? "descending" : "ascending");
    byId("rows").append(...sorted(rows, completions.map(of), descends));
  };
  return made;
}

/** Return the rows sorted by their values. Rows without a value come last in both directions. */
function sorted(rows, values, descends) {
  const order = rows.map((_, index) => index).sort((left, right) => {
    if (values[left] === null || values[right] === null) return (values[left] === null) - (values[right] === null);
    const isLess = values[left] < values[right] ? -1 : Number(values[left] > values[right]);
    return descends ? -isLess : isLess;
  });
  return order.map((index) => rows[index]);
}

function row(score, index, text, largest, onPick) {
  const bar = element("span", { className: "bar-fill" });
  setWidth(bar, (score.scaled_grad_norm ?? 0) / largest);
  const pick = element("button", { type: "button", className: "quiet", textContent: "Explain", onclick: onPick,
    "aria-pressed": "false", "aria-label": `Explain the norm of completion ${index + 1}` });
  pick.disabled = score.status !== "ok";
  return element("tr", { "data-index": index },
    element("th", { scope: "row" }, element("span", { className: "index", textContent: `${index + 1} ` }),
      element("span", { className: "text", textContent: text || "(empty)", dir: "auto" }),
      element("span", { className: "badge", textContent: "best" })),
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
