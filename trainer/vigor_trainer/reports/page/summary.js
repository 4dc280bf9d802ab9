"use strict";
// The parts of the page that are not plots over steps: held-out examples, the seconds of a step, and run settings.

const PART_COLOURS = [
  "#2fb574", "#9ad9b8", "#b9c7ff", "#4f8cff", "#8d7bff", "#b79b2c", "#f2994a", "#d16ba5", "#9aa0a9",
];
const NOT_RECORDED = "not recorded";

function tableRow(cells, tag = "td") {
  const row = element("tr");
  row.append(...cells.map((cell) => (cell instanceof Node ? cell : element(tag, cell))));
  return row;
}

function rowHead(text) {
  const head = element("th", text);
  head.scope = "row";
  return head;
}

/** A column of the question, and one for each evaluation that is shown of each run. */
function fillExamples(runs) {
  const section = byId("examples");
  const told = runs.filter((run) => run.examples.length > 0);
  const scroller = section.querySelector(".scroller");
  if (!told.length) {
    section.hidden = !runs.some(isEvaluated);
    scroller.replaceChildren(element("p", `Completions of held-out questions: ${NOT_RECORDED}.`));
    return;
  }
  const table = element("table", "", "examples");
  const heads = told.flatMap((run) => run.examples[0].completions.map(({ step }) => `${run.name}, step ${step}`));
  table.append(tableRow(["question", ...heads], "th"));
  told[0].examples.forEach((example, index) => {
    const question = element("td");
    question.append(element("pre", example.prompt));
    const cells = told.flatMap((run) => (run.examples[index] ?? { completions: [] }).completions.map(exampleCell));
    table.append(tableRow([question, ...cells]));
  });
  scroller.replaceChildren(table);
}

function exampleCell({ text, tokens, truncated, correct }) {
  const cell = element("td");
  const header = element("div", "", "marks");
  header.append(...marks(correct, truncated), element("span", `${tokens} tokens`, "soft"));
  cell.append(header, element("pre", text));
  return cell;
}

/** A row for each part of a step, a column for each run; the last row is what the clock on the wall has measured. */
function fillTime(runs) {
  const section = byId("time");
  const told = runs.filter((run) => run.step_seconds !== null);
  const untold = runs.filter((run) => run.step_seconds === null).map((run) => `${run.name}: ${NOT_RECORDED}.`);
  section.querySelector(".plot").hidden = told.length === 0;
  section.querySelector(".scroller").hidden = told.length === 0;
  const beside = told.map(({ name, step_seconds: { num_steps: count, publish } }) =>
    `${name}: means of ${count} steps; publishing weights took ${seconds(publish)} beside sampling.`);
  section.querySelector(".notes").textContent = [
    ...(told.length ? ["The parts add up to the measured time of a step; “other” is what no part has measured."] : []),
    ...beside, ...untold,
  ].join(" ");
  if (!told.length) return;
  const rows = Object.keys(told[0].step_seconds.parts).map((part) => tableRow([
    rowHead(part), ...told.map(({ step_seconds: { parts, wall } }) => secondsAndShare(parts[part], wall)),
  ]));
  const total = tableRow([rowHead("step, measured"), ...told.map(({ step_seconds: { wall } }) => secondsAndShare(wall, wall))]);
  total.className = "total";
  const head = tableRow(["part of a step", ...told.map((run) => run.name)], "th");
  section.querySelector("table").append(head, ...rows, total);
}

const seconds = (value) => `${value.toFixed(3)} s`;
const secondsAndShare = (value, wall) => `${seconds(value)}, ${((100 * value) / wall).toFixed(1)} %`;

/** One bar for each run, whose parts are stacked in the order of a step. */
async function drawTime(runs) {
  const told = runs.filter((run) => run.step_seconds !== null);
  if (!told.length) return;
  const names = told.map((run) => run.name);
  const traces = Object.keys(told[0].step_seconds.parts).map((part, index) => ({
    type: "bar", orientation: "h", name: part, y: names, x: told.map((run) => run.step_seconds.parts[part]),
    marker: { color: PART_COLOURS[index] }, hovertemplate: `${part}: %{x:.3f} s<extra>%{y}</extra>`,
  }));
  const base = layout({ x: { title: "time (seconds per optimizer step)" }, y: { title: "run", autorange: "reversed" } }, traces);
  const legend = { ...base.legend, y: -0.35, yanchor: "top", traceorder: "normal" };
  const drawn = { ...base, barmode: "stack", hovermode: "closest", legend };
  await Plotly.react(byId("time").querySelector(".plot"), traces, drawn, { displayModeBar: false, responsive: true });
}

/** A row for each setting; those that are not the same in all runs are marked. */
function fillSettings(settings, runs) {
  const table = byId("settings").querySelector("table");
  const numDifferent = settings.filter(({ differs }) => differs).length;
  byId("settings").querySelector(".notes").textContent = runs.length > 1
    ? `${numDifferent} of ${settings.length} are marked with ≠: they differ between the runs.` : "";
  table.append(tableRow(["setting", ...runs.map((run) => run.name)], "th"));
  for (const { name, values, differs } of settings) {
    const row = tableRow([rowHead(differs ? `≠ ${name}` : name), ...values]);
    row.className = differs ? "differs" : "";
    table.append(row);
  }
}
