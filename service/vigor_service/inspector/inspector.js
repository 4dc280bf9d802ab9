// Connects the parts of the page: the status, the form, its scores, and the attribution of a norm.

import { Problem, post } from "./api.js";
import { group, setUpForm } from "./ask.js";
import { showAttribution } from "./attribution.js";
import { byId, element } from "./dom.js";
import { KeyDialog } from "./key.js";
import { hideProblem, showProblem } from "./problems.js";
import { hideProgress, showProgress } from "./progress.js";
import { showRequest } from "./request.js";
import { markPicked, showScores } from "./scores.js";
import { Status } from "./status.js";

const keyDialog = new KeyDialog({ onKey: () => status.look() });
const status = new Status({ onWeights: noteWeights, onKeyNeeded: () => keyDialog.ask() });
let scored = null; // the last scored group, and the weights that scored it
let running = new AbortController(); // of the last request, which is aborted by the next one

/** Send a request to the service, and show the answer unless another request was sent meanwhile. */
async function ask(path, body, waiting, show) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  hideProblem();
  showProgress(waiting, { onCancel: () => { running.abort(); hideProgress(); } });
  try {
    const answer = await post(path, body, signal);
    if (answer !== null) show(answer);
  } catch (error) {
    if (error instanceof Problem && error.status === 401) keyDialog.ask({ insist: true });
    showProblem(error);
  } finally {
    if (!signal.aborted) hideProgress();
  }
}

function score() {
  const asked = group();
  const body = { groups: [asked], reward: byId("reward").value };
  ask("v1/score", body, "Scoring…", (answer) => {
    scored = { group: asked, digest: answer.weight_digest, version: answer.weight_version };
    showScores(answer, asked, explain);
    showRequest(body);
    byId("attribution").hidden = true;
    byId("outdated").hidden = true;
    byId("scores-title").focus();
  });
}

function explain(index) {
  const { completions, ...prompt } = scored.group;
  markPicked(index);
  const body = { ...prompt, completion: completions[index] };
  ask("v1/attribution", body, "Computing attribution…", (answer) => {
    showAttribution(answer, index);
    byId("attribution-title").focus();
  });
}

function noteWeights({ weight_version: version, weight_digest: digest }) {
  const isOutdated = scored !== null && scored.digest !== digest;
  if (isOutdated && byId("outdated").hidden) {
    const again = element("button", { type: "button", className: "quiet", textContent: "Score again", onclick: score });
    byId("outdated").replaceChildren(`Scored with weights ${scored.version}; the service now has version ${version}. `, again);
  }
  byId("outdated").hidden = !isOutdated;
}

byId("ask").onsubmit = (event) => { event.preventDefault(); score(); };
byId("numbers").onchange = ({ target }) => byId("tokens").classList.toggle("numbered", target.checked);
setUpForm();
status.look();
