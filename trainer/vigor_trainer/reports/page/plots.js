"use strict";
// The plots: each takes the runs and returns Plotly's traces. Colours are readable on white and on near-black.

const COLOURS = ["#4f8cff", "#f2994a", "#2fb574", "#d16ba5", "#b79b2c", "#8d7bff", "#e05d5d", "#3fb6c9"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const INK = "#8a8f98";
const GRID = "rgba(138, 143, 152, 0.22)";
const OWN = "";  // the choice "each run's own rewards"

const colour = (index) => COLOURS[index % COLOURS.length];
const dash = (index) => DASHES[index % DASHES.length];

function faded(hex) {
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
  return `rgba(${red}, ${green}, ${blue}, 0.16)`;
}

/** The traces of a curve with its intervals. */
function band(curve, name, hex, style = "solid") {
  const shared = { x: curve.x, legendgroup: name, hoverinfo: "skip", showlegend: false, mode: "lines" };
  const edge = { width: 0 };
  const interval = (index) => `[${short(curve.low[index])}, ${short(curve.high[index])}]`;
  const text = curve.value.map((value, index) => `${short(value)} ${interval(index)}`);
  return [
    { ...shared, y: curve.low, line: edge },
    { ...shared, y: curve.high, line: edge, fill: "tonexty", fillcolor: faded(hex) },
    {
      x: curve.x, y: curve.value, text, name, legendgroup: name, mode: "lines+markers", hovertemplate: "%{text}",
      line: { color: hex, width: 2.5, dash: style }, marker: { color: hex, size: 5 },
    },
  ];
}

const line = (points, name, hex) => ({
  x: points.x, y: points.y, name, mode: points.x.length > 60 ? "lines" : "lines+markers",
  line: { color: hex, width: 2 }, marker: { size: 5 },
});

const short = (value) => String(Number(value.toPrecision(3)));

const ofEachRun = (runs, traces) => runs.flatMap((run, index) => traces(run, colour(index)));
const curves = (of) => (runs) => ofEachRun(runs, (run, hex) => (of(run).x.length ? band(of(run), run.name, hex) : []));
const metric = (name) => (runs) =>
  ofEachRun(runs, (run, hex) => (run.metrics[name].x.length ? [line(run.metrics[name], run.name, hex)] : []));

const scattered = (field) => (runs) =>
  ofEachRun(runs, ({ norms, name }, hex) => (norms.tokens.length ? [{
    x: norms.tokens, y: norms[field], name, mode: "markers", marker: { color: hex, size: 4, opacity: 0.45 },
    hovertemplate: "%{x} tokens: %{y:.4g}",
  }] : []));

/** One run: a colour for each of its rewards. Several: a colour for each run. */
function auc(runs, chosen = OWN) {
  const isShown = (run, name) => (chosen === OWN ? run.rewards.includes(name) : name === chosen);
  return runs.flatMap((run, index) => {
    const names = Object.keys(run.auc).filter((name) => isShown(run, name));
    if (runs.length === 1) return names.flatMap((name, number) => band(run.auc[name], name, colour(number)));
    const curveOf = (name, number) => band(run.auc[name], `${run.name}: ${name}`, colour(index), dash(number));
    return names.flatMap(curveOf);
  });
}

/** A colour for each run, a dash for each decoding. */
const heldOut = (runs) => ofEachRun(runs, (run, hex) => {
  const decodings = Object.keys(run.held_out);
  const name = (decoding) => (runs.length > 1 ? `${run.name}: ${decoding}` : decoding);
  return decodings.flatMap((decoding, number) => band(run.held_out[decoding], name(decoding), hex, dash(number)));
});

const LENGTHS = { type: "log", title: "length of the completion (tokens)" };
const norms = (title) => ({ type: "log", title });
const BINS = { title: "bin by rank (1: rewarded most)", tickvals: [1, 2, 3, 4, 5, 6, 7, 8], range: [0.7, 8.3] };
const share = (title) => ({ title, tickformat: ".0%", rangemode: "tozero" });
const CORRECT = share("correct (% of completions)");
const REPEATED = share("repeated 3-grams (%)");

const PLOTS = {
  "held-out": { traces: heldOut, y: CORRECT },
  accuracy: { traces: curves((run) => run.accuracy), y: CORRECT },
  auc: { traces: auc, y: { title: "AUC (0 to 1)" }, level: 0.5 },
  "bins-accuracy": { traces: curves((run) => run.bins.accuracy), x: BINS, y: CORRECT },
  "bins-length": { traces: curves((run) => run.bins.length), x: BINS, y: { title: "mean length (tokens)" } },
  "bins-repetition": { traces: curves((run) => run.bins.repetition), x: BINS, y: REPEATED },
  "norm-length": { traces: scattered("norm"), x: LENGTHS, y: norms("‖∇NLL‖ (nats)"), slope: 0 },
  "scaled-length": { traces: scattered("scaled"), x: LENGTHS, y: norms("√T · ‖∇NLL‖ (nats)"), slope: 1 },
  norm: { traces: metric("norm"), y: { title: "√T · ‖∇NLL‖ (nats)" } },
  entropy: { traces: metric("entropy"), y: { title: "mean entropy (nats)" } },
  logprob: { traces: metric("logprob"), y: { title: "mean log-probability (nats)" } },
  length: { traces: metric("length"), y: { title: "mean length (tokens)" } },
  correlation: { traces: metric("correlation"), y: { title: "correlation (−1 to 1)" }, level: 0 },
  repetition: { traces: curves((run) => run.repetition), y: REPEATED },
  truncated: { traces: curves((run) => run.truncated), y: share("truncated (% of completions)") },
  kl: { traces: metric("kl"), y: { title: "KL divergence (nats)" } },
  seconds: { traces: metric("seconds"), y: { title: "waiting (seconds per round)", rangemode: "tozero" } },
};

function axis({ title, ...more }) {
  const lines = { gridcolor: GRID, zerolinecolor: GRID, linecolor: GRID, tickcolor: GRID };
  const named = title ? { title: { text: title, font: { size: 13 } } } : {};
  return { ...lines, automargin: true, nticks: 6, ...more, ...named };
}

function layout({ x = { title: "optimizer steps taken" }, y = {}, level }, traces) {
  const named = traces.filter((trace) => trace.showlegend !== false);
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: INK, family: "system-ui, sans-serif", size: 13 },
    margin: { l: 44, r: 10, t: 8, b: 40 },
    hovermode: x.type ? "closest" : "x unified",
    hoverlabel: { bgcolor: "#20242c", font: { color: "#f2f4f8" } },
    showlegend: named.length > 1,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    xaxis: axis({ showgrid: false, zeroline: false, ...x }),
    yaxis: axis(y),
    shapes: level === undefined ? [] : [
      { type: "line", xref: "paper", x0: 0, x1: 1, y0: level, y1: level, line: { color: INK, width: 1, dash: "dot" } },
    ],
  };
}

/** Draw a section's plot; without anything to show the section is hidden. */
async function draw(section, runs, ...choice) {
  const plot = PLOTS[section.dataset.plot];
  const traces = plot.traces(runs, ...choice);
  section.hidden = traces.length === 0 && choice.length === 0;
  if (section.hidden) return;
  const config = { displayModeBar: false, responsive: true };
  await Plotly.react(section.querySelector(".plot"), traces, layout(plot, traces), config);
  if (plot.slope !== undefined) section.querySelector(".slopes").textContent = slopes(runs, plot.slope);
}

function slopes(runs, which) {
  const told = runs.filter((run) => typeof run.norms.slopes[which] === "number");
  const values = told.map((run) => `${runs.length > 1 ? `${run.name} ` : ""}${run.norms.slopes[which].toFixed(2)}`);
  return values.length ? `Slope of the fitted line: ${values.join(", ")}.` : "";
}
