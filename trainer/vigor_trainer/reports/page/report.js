"use strict";
// Builds the page: its subject and the list of completions, then, once Plotly is loaded, the plots one by one.

const SEARCH_DELAY_MS = 150;
const byId = (id) => document.getElementById(id);

function fillRuns(runs) {
  const head = element("tr");
  const names = ["run", "rewards", "rounds", "completions", "accuracy in training, first → last", "weights at the last round"];
  const hasEvaluations = runs.some(isEvaluated);
  if (hasEvaluations) names.splice(1, 0, "held-out accuracy, before → after", "truncated there, before → after");
  head.append(...names.map((name) => element("th", name)));
  byId("runs").append(head, ...runs.map((run, index) => runRow(run, index, hasEvaluations)));
}

function runRow(run, index, hasEvaluations) {
  const row = element("tr");
  const name = element("td", run.name);
  const swatch = element("span", "", "swatch");
  swatch.style.background = colour(index);
  name.prepend(swatch);
  const { value } = run.accuracy;
  const cells = [
    ...(hasEvaluations ? [beforeAndAfter(run), truncation(run)] : []),
    run.rewards.join(", "), run.num_rounds, run.num_completions.toLocaleString("en"),
    value.length ? `${percent(value[0])} → ${percent(value[value.length - 1])}` : "–", `version ${run.version}`,
  ];
  row.append(name, ...cells.map((cell) => element("td", cell)));
  return row;
}

const percent = (share) => `${(100 * share).toFixed(0)} %`;
const isEvaluated = (run) => Object.keys(run.held_out).length > 0;

/** Sampled accuracy where there is one, with its interval: it moves before the greedy one does. */
function beforeAndAfter({ held_out: curves }) {
  if (!Object.keys(curves).length) return "–";
  const [decoding] = Object.keys(curves).reverse();
  const { value, low, high } = curves[decoding];
  const at = (index) => `${percent(value[index])} [${percent(low[index])}, ${percent(high[index])}]`;
  return `${decoding} ${at(0)} → ${at(value.length - 1)}`;
}

function truncation({ held_out_truncated: shares }) {
  return shares === null ? "not recorded" : shares.map(percent).join(" → ");
}

function fillFacts(pairs) {
  byId("facts").append(...pairs.map(([name, value]) => {
    const pair = element("div");
    pair.append(element("dt", name), element("dd", value));
    return pair;
  }));
}

function fillSelect(select, options) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
}

function startList(runs) {
  const groups = groupsOf(runs);
  const list = new GroupList(byId("groups"), runs.length > 1);
  const steps = [...new Set(groups.map((group) => group.step))].sort((a, b) => a - b);
  fillSelect(byId("run"), [[ALL, "all"], ...runs.map((run, index) => [index, run.name])]);
  fillSelect(byId("step"), [[ALL, "all"], ...steps.map((step) => [step, step])]);
  byId("run-filter").hidden = runs.length === 1;
  const recorded = runs.reduce((sum, run) => sum + run.num_completions, 0);
  const held = groups.reduce((sum, group) => sum + group.completions.length, 0);

  function apply() {
    const choice = Object.fromEntries(["run", "step", "kind", "text"].map((id) => [id, byId(id).value]));
    const found = filtered(groups, choice);
    const shown = found.reduce((sum, group) => sum + group.shown.length, 0);
    const more = held < recorded ? `; ${recorded.toLocaleString("en")} were recorded` : "";
    byId("count").textContent = `${shown.toLocaleString("en")} of ${held.toLocaleString("en")} completions${more}`;
    list.show(found);
  }

  let waiting = 0;
  const form = document.querySelector(".filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", apply);
  byId("text").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(apply, SEARCH_DELAY_MS);
  });
  apply();
}

function startAucChoice(runs) {
  const select = byId("auc-reward");
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.auc)))];
  fillSelect(select, [[OWN, runs.length > 1 ? "each run's own" : "the run's own"], ...names.map((name) => [name, name])]);
  select.addEventListener("change", () => draw(select.closest("section"), runs, select.value));
  return names.length > 0;
}

function start() {
  const { facts: pairs, settings, runs } = JSON.parse(byId("data").textContent);
  byId("data").remove();
  fillRuns(runs);
  fillFacts(pairs);
  fillExamples(runs);
  fillTime(runs);
  fillSettings(settings, runs);
  startList(runs);
  performance.mark("interactive");
  addEventListener("load", () => drawAll(runs));
}

async function drawAll(runs) {
  const hasLabels = startAucChoice(runs);
  for (const section of document.querySelectorAll("[data-plot]")) {
    if (section.dataset.plot === "auc") {
      section.hidden = !hasLabels;
      if (hasLabels) await draw(section, runs, OWN);
    } else {
      await draw(section, runs);
    }
    await new Promise((resolve) => { setTimeout(resolve); });  // the list stays usable meanwhile
  }
  await drawTime(runs);
  performance.mark("drawn");
  document.documentElement.dataset.drawn = "true";
}

start();
