// Polls the status of the service. It pauses while the page is hidden, and slows down while there is no answer.

import { NoAnswer, Problem, get, metrics, probe } from "./api.js";
import { byId, setText } from "./dom.js";
import { age, bytes, count, large, shortDigest } from "./numbers.js";

const PAUSE_SECONDS = 2;
const LONGEST_PAUSE_SECONDS = 30;
const STATES = {
  ok: "Ready",
  loading: "Loading the model",
  draining: "Shutting down",
  weights_applying: "Swapping weights",
  weights_poisoned: "Weights unusable",
  unauthenticated: "An API key is required",
  away: "No answer",
};

const UPDATE_STATES = { verifying: "being verified", applying: "being swapped in" };

export class Status {
  /** `onWeights` gets the weights after each successful poll; `onKeyNeeded` is called if the key is not accepted. */
  constructor({ onWeights, onKeyNeeded }) {
    this.onWeights = onWeights;
    this.onKeyNeeded = onKeyNeeded;
    this.model = null;
    this.numFailures = 0;
    this.isLooking = false;
    document.addEventListener("visibilitychange", () => this.look());
  }

  /** Poll now, and keep polling. */
  async look() {
    clearTimeout(this.timer);
    if (document.hidden || this.isLooking) return;
    this.isLooking = true;
    const pauseSeconds = await this.ask();
    this.isLooking = false;
    this.timer = setTimeout(() => this.look(), 1000 * pauseSeconds);
  }

  /** Poll once and show the result. Return the seconds until the next poll. */
  async ask() {
    try {
      const { status, reason, phase } = await probe("readyz");
      showState(status === "ok" ? "ok" : reason, phase);
      await this.askDetails();
      this.numFailures = 0;
    } catch (error) {
      this.fail(error);
    }
    byId("away").hidden = this.numFailures === 0;
    return this.pauseSeconds();
  }

  pauseSeconds() {
    return Math.min(PAUSE_SECONDS * 2 ** this.numFailures, LONGEST_PAUSE_SECONDS);
  }

  async askDetails() {
    const [weights, queue] = await Promise.all([
      get("v1/weights"), metrics(["vigor_queued_requests", "vigor_queued_tokens"]),
    ]);
    this.model ??= (await get("v1/model")).body;
    showModel(this.model);
    showWeights(weights.body, weights.at);
    showQueue(queue.vigor_queued_requests, queue.vigor_queued_tokens);
    this.onWeights(weights.body);
  }

  fail(error) {
    if (error instanceof Problem) {
      showState(error.document.code);
      if (error.status === 401) this.onKeyNeeded();
    } else if (error instanceof NoAnswer) {
      this.numFailures += 1;
      this.model = null; // the service may have another model when it is back
      showState("away");
      setText(byId("away"), `Connection lost. Showing the last known state; retrying in ${this.pauseSeconds()} s.`);
    } else {
      throw error;
    }
  }
}

function showState(state, phase) {
  const target = byId("state");
  target.dataset.state = state;
  setText(target, `${STATES[state] ?? state ?? "Unknown"}${phase ? `: ${phase.replaceAll("_", " ")}` : ""}`);
}

function showModel(model) {
  setText(byId("model"), model.model);
  const measured = model.num_measured_parameters === model.num_parameters
    ? `${large(model.num_parameters)} parameters`
    : `${large(model.num_measured_parameters)} of ${large(model.num_parameters)} parameters measured`;
  setText(byId("model-more"), `${measured}, ${model.dtype}, ${model.device}`);
}

function showWeights(weights, at) {
  setText(byId("weights"), `version ${weights.weight_version}`);
  const published = `published ${age((at - Date.parse(weights.published_at)) / 1000)}`;
  setText(byId("weights-more"), weights.update ? updating(weights.update) : published);
  setText(byId("digest"), shortDigest(weights.weight_digest));
  byId("digest").title = weights.weight_digest;
  setText(byId("digest-more"), `${count(weights.num_tensors, "tensor")}, ${bytes(weights.num_bytes)}`);
}

function updating({ weight_version, state, received_bytes, num_bytes }) {
  const received = `${bytes(received_bytes)} of ${bytes(num_bytes)} received`;
  return `version ${weight_version}: ${state === "receiving" ? received : UPDATE_STATES[state]}`;
}

function showQueue(numRequests, numTokens) {
  setText(byId("queue"), count(numRequests, "request"));
  setText(byId("queue-more"), count(numTokens, "token"));
}
