// Shows where one completion's norm comes from: its tokens as a heat map, its layers as bars.

import { byId, element, setText, setWidth } from "./dom.js";
import { computed, percent, shortDigest, significant } from "./numbers.js";

const FULLEST = 0.75; // opacity of the colour of the token with the largest share

export function showAttribution(answer, index) {
  setText(byId("attribution-title"), `Where the norm of completion ${index + 1} comes from`);
  setText(byId("attributed-with"), [
    `norm ${significant(answer.grad_norm)}`, `norm · √T ${significant(answer.scaled_grad_norm)}`,
    `weights ${answer.weight_version} (${shortDigest(answer.weight_digest)})`,
    computed(answer.timing.compute_seconds),
  ].join(" · "));
  showTokens(answer.tokens);
  showLayers(answer.layers);
  const tokenSum = sum(answer.tokens);
  setText(byId("token-sum"), `Tokens ${percent(tokenSum)} + not resolved by position ${percent(answer.unresolved_share)} = `
    + percent(plus(tokenSum, answer.unresolved_share)));
  setText(byId("layer-sum"), `Sum ${percent(sum(answer.layers))}`);
  byId("attribution").hidden = false;
}

/** Return the sum of the shares; null if one of them is null, as for a norm of 0. */
const sum = (items) => items.reduce((total, { share }) => plus(total, share), 0);
const plus = (left, right) => (left === null || right === null ? null : left + right);

// ------------------------------------------------------------------------------------------------ tokens

/** Merge the tokens that make up one character: the first has its text, and the others have an empty text. */
function whole(tokens) {
  const merged = [];
  for (const [position, token] of tokens.entries()) {
    const last = merged.at(-1);
    if (token.text === "" && last?.part === token.part) {
      Object.assign(last, { share: plus(last.share, token.share), end: position + 1 });
    } else {
      merged.push({ ...token, begin: position + 1, end: position + 1 });
    }
  }
  return merged;
}

function showTokens(each) {
  const tokens = whole(each);
  const largest = Math.max(...tokens.map(({ share }) => Math.abs(share)));
  const buttons = tokens.map((token, index) => tokenButton(token, tokens[index + 1], largest));
  const parts = ["prompt", "completion"].map((part) => {
    const own = buttons.filter((_, position) => tokens[position].part === part);
    const share = sum(tokens.filter((token) => token.part === part));
    return element("div", { className: "part", role: "group", "aria-label": `${part}, ${percent(share)}` },
      element("p", { className: "part-name" }, part, element("span", { textContent: percent(share) })),
      element("p", { className: "flow" }, ...own.flatMap(withBreak)));
  });
  byId("tokens").replaceChildren(...parts);
  setText(byId("readout"), "Point at a token, or move there with the arrow keys.");
  moveWithKeys(buttons);
}

function tokenButton(token, next, largest) {
  const text = visible(token);
  const share = percent(token.share, 2);
  const predicts = next ? `; predicts ${quoted(next)}${next.in_loss ? "" : ", which is not in the loss"}` : "";
  const place = token.begin === token.end ? `token ${token.begin}` : `tokens ${token.begin} to ${token.end}`;
  const told = `${quoted(token)}, ${place}: ${share}${predicts}`;
  const button = element("button", { type: "button", className: "token", tabIndex: -1, "aria-label": told },
    element("span", { className: "token-text", textContent: text }),
    element("span", { className: "token-share", textContent: percent(token.share) }));
  button.dataset.sign = token.share < 0 ? "negative" : "positive";
  button.style.setProperty("--heat", `${(100 * FULLEST * Math.sqrt(Math.abs(token.share) / (largest || 1))).toFixed(1)}%`);
  button.onmouseenter = button.onfocus = () => setText(byId("readout"), told);
  return button;
}

/** Return the button, followed by a line break if its text has one. */
const withBreak = (button) => (button.textContent.includes("↵") ? [button, element("br")] : [button]);

function visible({ text, id }) {
  if (!text) return `⟨${id}⟩`;
  const named = text.replaceAll("\n", "↵").replaceAll("\t", "⇥");
  return text.trim() ? named.replace(/^ | $/g, "\u00a0") : named.replaceAll(" ", "␣");
}

const quoted = ({ text, id }) => (text ? `“${text.replaceAll("\n", "↵")}”` : `id ${id}`);

/** Make the buttons one stop of the Tab key, with the arrow keys moving within them. */
function moveWithKeys(buttons) {
  let current = 0;
  buttons[current].tabIndex = 0;
  const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -buttons.length, End: buttons.length };
  byId("tokens").onkeydown = (event) => {
    if (!(event.key in moves)) return;
    event.preventDefault();
    select(Math.min(Math.max(current + moves[event.key], 0), buttons.length - 1)).focus();
  };
  byId("tokens").onclick = (event) => {
    const clicked = buttons.indexOf(event.target.closest("button"));
    if (clicked >= 0) select(clicked).focus();
  };
  function select(position) {
    buttons[current].tabIndex = -1;
    current = position;
    buttons[current].tabIndex = 0;
    return buttons[current];
  }
}

// ------------------------------------------------------------------------------------------------ layers

function showLayers(layers) {
  const largest = Math.max(...layers.map(({ share }) => share));
  byId("layers").replaceChildren(...layers.map((layer) => {
    const fill = element("span", { className: "bar-fill" });
    setWidth(fill, layer.share / (largest || 1));
    return element("li", {}, element("details", {},
      element("summary", {},
        element("span", { className: "layer-name", textContent: layer.name }),
        element("span", { className: "bar-track" }, fill),
        element("span", { className: "layer-share", textContent: percent(layer.share) })),
      element("ul", {}, ...layer.parameters.map(parameterRow))));
  }));
}

function parameterRow({ name, share, has_positions: hasPositions }) {
  return element("li", {},
    element("span", { className: "parameter-name", textContent: hasPositions ? name : `${name} (no positions)` }),
    element("span", { className: "layer-share", textContent: percent(share, 2) }));
}
