// Calls of the service: the key, what fails, how long is waited. The key stays in this tab, and in no address.

const KEY = "vigor-key";
const PROBE_SECONDS = 5;

/** The service refused: its problem document. */
export class Problem extends Error {
  constructor(document, status, headers) {
    super(document.detail ?? `HTTP ${status}`);
    this.document = document;
    this.status = status;
    this.requestId = headers.get("X-Request-Id");
    this.retryAfterSeconds = headers.get("Retry-After");
  }
}

/** No answer, or one that is not the service's. */
export class NoAnswer extends Error {}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const setKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);

/** Return a probe's answer: 503 is one. */
export const probe = async (path) => (await fetched(path, { timeoutSeconds: PROBE_SECONDS })).json();

/** Return a JSON answer and when the service wrote it, by its own clock. */
export async function get(path) {
  const response = await answered(path, { timeoutSeconds: PROBE_SECONDS });
  return { body: await response.json(), at: Date.parse(response.headers.get("Date")) || Date.now() };
}

/** Return the values of the metrics of these names that have no labels. */
export async function metrics(names) {
  const lines = (await (await answered("metrics", { timeoutSeconds: PROBE_SECONDS })).text()).split("\n");
  const pairs = lines.map((line) => line.split(" ")).filter(([name]) => names.includes(name));
  return Object.fromEntries(pairs.map(([name, value]) => [name, Number(value)]));
}

/** Return the answer to a JSON body, or null when `signal` ended the wait. */
export async function post(path, body, signal) {
  try {
    const headers = { "Content-Type": "application/json" };
    return await (await answered(path, { method: "POST", headers, body: JSON.stringify(body), signal })).json();
  } catch (error) {
    if (signal.aborted) return null;
    throw error;
  }
}

async function answered(path, options) {
  const response = await fetched(path, options);
  if (response.ok) return response;
  const isProblem = response.headers.get("Content-Type")?.startsWith("application/problem+json");
  throw new Problem(isProblem ? await response.json() : {}, response.status, response.headers);
}

async function fetched(path, { timeoutSeconds, headers = {}, signal, ...options }) {
  const key = sessionStorage.getItem(KEY);
  const shown = key === null ? headers : { ...headers, Authorization: `Bearer ${key}` };
  try {
    return await fetch(path, {
      ...options, headers: shown, cache: "no-store", signal: signal ?? AbortSignal.timeout(1000 * timeoutSeconds),
    });
  } catch (error) {
    throw new NoAnswer(`the service does not answer (${error.name})`);
  }
}
