// Shows errors as the service describes them.

import { NoAnswer, Problem } from "./api.js";
import { byId, element } from "./dom.js";

export function hideProblem() {
  byId("problem").hidden = true;
  byId("problem").replaceChildren();
}

export function showProblem(error) {
  if (!(error instanceof Problem) && !(error instanceof NoAnswer)) throw error;
  const { title, detail, errors = [], code } = error.document ?? {};
  const more = [code, error.requestId && `request ${error.requestId}`].filter(Boolean).join(" · ");
  byId("problem").replaceChildren(
    element("p", { className: "problem-title", textContent: title ?? "No answer" }),
    element("p", { textContent: detail ?? error.message }),
    ...(errors.length ? [element("ul", {}, ...errors.map(place))] : []),
    ...(error.retryAfterSeconds ? [element("p", { textContent: `Try again in ${error.retryAfterSeconds} s.` })] : []),
    element("p", { className: "more", textContent: more }));
  byId("problem").hidden = false;
}

function place({ loc, msg }) {
  return element("li", {}, element("code", { textContent: loc.join(" › ") }), ` ${msg}`);
}
