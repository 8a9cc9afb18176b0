// The public API of the gateway: requests, the key, and what the served model is.

import { kept } from "./dom.js";

export const BASE = new URL("../", import.meta.url); // where the page is, also under a path prefix

const KEY = "audiocnn-key";
const BY_STATUS = { 413: "upload_too_large", 502: "server_failed", 503: "server_unreachable", 504: "server_unreachable" };

let key = kept("sessionStorage", KEY);
let asking = null; // the dialog that is open now
let askForKey = async () => null;

/** What `/labels` and `/config` say; empty until they have answered. */
export const model = { labels: new Map(), config: null };

export const currentKey = () => key;
/** What the served model gives: feature maps and evidence; detections. */
export const hasMaps = () => model.config.has_feature_maps;
export const hasDetections = () => Boolean(model.config.thresholds);
export const emojiOf = (name) => model.labels.get(name)?.emoji ?? "🔊";

export class ApiError extends Error {
  constructor(code, message, retrySeconds = null) {
    super(message);
    this.code = code;
    this.retrySeconds = retrySeconds;
  }
}

/** `ask(isWrong)` shows the dialog and resolves to a key, or to null if it is cancelled. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** Have a key typed in; concurrent callers share one dialog. */
export async function newKey(isWrong) {
  asking ??= askForKey(isWrong).finally(() => { asking = null; });
  key = await asking;
  if (key) kept("sessionStorage", KEY, key);
  return key;
}

async function send(path, { body, signal }) {
  const headers = { ...(key && { "X-API-Key": key }), ...(body && { "Content-Type": "application/octet-stream" }) };
  try {
    return await fetch(new URL(path, BASE), { method: body ? "POST" : "GET", headers, body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("connection_lost", "The gateway does not answer.");
  }
}

async function errorOf(reply) {
  const retrySeconds = Number(reply.headers.get("Retry-After")) || null;
  try {
    const { error } = await reply.json();
    return new ApiError(error.code, error.message, retrySeconds);
  } catch { // not of the gateway: a proxy's own page
    return new ApiError(BY_STATUS[reply.status] ?? "internal_error", `HTTP ${reply.status}`, retrySeconds);
  }
}

async function request(path, options = {}) {
  for (;;) {
    const used = key;
    const reply = await send(path, options);
    if (reply.ok) return reply;
    if (reply.status !== 401) throw await errorOf(reply);
    if (key === used && !(await newKey(Boolean(used)))) throw await errorOf(reply);
  }
}

/** The answer to a sound; `options` are those of the API. */
export async function predict(sound, options, signal) {
  const reply = await request(`predict?${new URLSearchParams(options)}`, { body: sound, signal });
  return reply.json();
}

/** An example sound of the server. */
export async function example(name) {
  return (await request(`examples/${encodeURIComponent(name)}.wav`)).blob();
}

/** Ask once what the model is; raises `ApiError`. */
export async function loadModel() {
  model.config ??= await (await request("config")).json();
  if (!model.labels.size) {
    const { labels } = await (await request("labels")).json();
    model.labels = new Map(labels.map((label) => [label.name, label]));
  }
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The same request for a shell. The key is not in it. */
export function curlLine(fileName) {
  const name = fileName.replace(/[\u0000-\u001f\u007f]/g, "_");
  const header = key ? ' -H "X-API-Key: $API_KEY"' : "";
  return `curl -gT ${quoted(`./${name}`)}${header} ${quoted(`${BASE}predict?top_k=5`)}`;
}

/** The address of the live stream. */
export function streamAddress() {
  const address = new URL("ws/predict", BASE);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  return address;
}
