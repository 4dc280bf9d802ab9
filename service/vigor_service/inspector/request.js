// Requests as text: read from pasted JSON or from a link, and written as curl, Python or JSON.

import { hasKey } from "./api.js";
import { byId, setText } from "./dom.js";

const LONGEST_LINK = 8000; // characters; every browser keeps a URL of this length

/** The text cannot be shown in the form; the message says what the form accepts. */
export class Unreadable extends Error {}

/** Return `{ prompt, kind, completions: [{ text, ended }], reward }` of a group, a request or a list of completions. */
export function read(text) {
  const given = parsed(text);
  const group = Array.isArray(given) ? { completions: given } : given.groups?.[0] ?? given;
  if (!Array.isArray(group.completions)) throw new Unreadable("No completions found: give a list of texts, or a group.");
  return { ...promptOf(group), completions: group.completions.map(completion), reward: given.reward };
}

/** Show the request in the selected format, and put it into the URL of the page if it fits. */
export function showRequest(body) {
  const show = () => setText(byId("request"), FORMS[byId("request-form").value](body));
  byId("request-form").onchange = show;
  byId("copy-request").onclick = copy;
  show();
  const link = `#${encodeURIComponent(JSON.stringify(body))}`;
  history.replaceState(null, "", link.length <= LONGEST_LINK ? link : location.pathname);
}

/** Return the request in the URL of the page, or null. */
export function linked() {
  try {
    return location.hash.length > 1 ? read(decodeURIComponent(location.hash.slice(1))) : null;
  } catch (error) {
    if (error instanceof Unreadable || error instanceof URIError) return null;
    throw error;
  }
}

function parsed(text) {
  try {
    const given = JSON.parse(text.trim().split("\n").length > 1 ? wholeOrFirstLine(text) : text);
    if (given !== null && typeof given === "object") return given;
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  throw new Unreadable("This is not JSON. Give a line of JSONL, a group, a request, or a list of completions.");
}

/** Return the text if it is one JSON value, which may span lines; else its first line, for JSONL. */
function wholeOrFirstLine(text) {
  try {
    JSON.parse(text);
    return text;
  } catch {
    return text.trim().split("\n")[0];
  }
}

function promptOf({ prompt, messages }) {
  if (typeof prompt === "string") return { kind: "prompt", prompt };
  if (messages === undefined && prompt === undefined) return {}; // the form's prompt stays as it is
  if (messages?.length === 1 && messages[0].role === "user" && typeof messages[0].content === "string") {
    return { kind: "messages", prompt: messages[0].content };
  }
  throw new Unreadable("This page accepts a plain prompt or one user message; the API accepts whole conversations.");
}

function completion(given) {
  const { text, finish_reason: reason = "stop" } = typeof given === "string" ? { text: given } : given ?? {};
  if (typeof text !== "string") throw new Unreadable("A completion is a text, or an object with a text; only the API accepts token ids.");
  return { text, ended: reason !== "length" };
}

const FORMS = {
  curl: (body) => [
    `curl ${new URL("v1/score", document.baseURI).href} \\`,
    ...(hasKey() ? ['  -H "Authorization: Bearer $VIGOR_API_KEY" \\'] : []),
    "  -H 'Content-Type: application/json' \\",
    `  -d '${JSON.stringify(body).replaceAll("'", "'\\''")}'`,
  ].join("\n"),
  python: ({ groups, reward }) => [
    "from vigor_client import VigorClient",
    "",
    `with VigorClient(${JSON.stringify(new URL(".", document.baseURI).href)}) as client:`,
    `    response = client.score(${JSON.stringify(groups)}, reward=${JSON.stringify(reward)})`,
  ].join("\n"),
  json: (body) => JSON.stringify(body, null, 2),
};

async function copy() {
  const target = byId("request");
  try {
    await navigator.clipboard.writeText(target.textContent);
    setText(byId("copied"), "Copied.");
  } catch { // the page comes from another machine without TLS, or the browser refuses
    getSelection().selectAllChildren(target);
    setText(byId("copied"), "Selected: press Ctrl+C.");
  }
}
