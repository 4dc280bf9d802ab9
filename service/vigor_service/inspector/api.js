// Calls the service: adds the key, limits the waiting time, and turns failures into errors. The key is stored only in
// this tab, and never put into a URL.

const KEY = "vigor-key";
const PROBE_SECONDS = 5;

/** The service refused the request; carries its problem document. */
export class Problem extends Error {
  constructor(document, status, headers) {
    super(document.detail ?? `HTTP ${status}`);
    this.document = document;
    this.status = status;
    this.requestId = headers.get("X-Request-Id");
    this.retryAfterSeconds = headers.get("Retry-After");
  }
}

/** The service did not answer. */
export class NoAnswer extends Error {}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const setKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);

/** Return a probe's answer; a 503 is an answer too. */
export const probe = async (path) => (await fetched(path, { timeoutSeconds: PROBE_SECONDS })).json();

/** Return a JSON answer, and the time at which the service sent it, by the service's clock. */
export async function get(path) {
  const response = await answered(path, { timeoutSeconds: PROBE_SECONDS });
  return { body: await response.json(), at: Date.parse(response.headers.get("Date")) || Date.now() };
}

/** Return the values of the metrics with these names; only metrics without labels are found. */
export async function metrics(names) {
  const lines = (await (await answered("metrics", { timeoutSeconds: PROBE_SECONDS })).text()).split("\n");
  const pairs = lines.map((line) => line.split(" ")).filter(([name]) => names.includes(name));
  return Object.fromEntries(pairs.map(([name, value]) => [name, Number(value)]));
}

/** Post a JSON body and return the answer, or null if `signal` aborted the request. */
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
