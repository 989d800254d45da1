// How does the page talk to the API? Every request goes through here: the key, problems, and what to do while
// nobody answers. What only reads is asked again until it is answered; what changes something carries an
// Idempotency-Key, so it may be sent again too.

const KEY = "dmsae-key";
const LONGEST_PAUSE_S = 8;
const SENDS = 6;
const etags = new WeakMap();
const listeners = new Set();
let failures = 0;

/** A request that the API refused: its problem document, whose `detail` is a sentence for people. */
export class Refusal extends Error {
  constructor(problem, retryAfterS) {
    super(problem.detail ?? problem.title ?? "The request was refused.");
    this.name = "Refusal";
    this.problem = problem;
    this.status = problem.status;
    this.code = problem.code;
    this.errors = problem.errors ?? [];
    this.retryAfterS = retryAfterS;
  }
}

export const keyInUse = () => sessionStorage.getItem(KEY);
export const useKey = (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY));

/** Be told `true` when the API stops answering and `false` when it answers again. */
export const onOutage = (listener) => listeners.add(listener);

/** Read a JSON answer. With `etag` (see `etagOf`): null if it is still that one; with `wait` as well (seconds)
 * it is answered when it changes. Outages are waited out until `signal` fires. */
export async function get(path, { signal, etag, wait } = {}) {
  const address = wait === undefined ? path : withQuery(path, { wait });
  const answer = await read(address, { signal, headers: etag ? { "If-None-Match": etag } : {} });
  if (answer.status === 304) return null;
  const body = JSON.parse(answer.content);
  if (answer.headers.get("ETag")) etags.set(body, answer.headers.get("ETag"));
  return body;
}

/** The ETag that came with what `get` gave. */
export const etagOf = (body) => etags.get(body);

/** Read an answer as a file (figures, CSV): for `URL.createObjectURL`, since a link could not carry the key. */
export async function blob(path, { signal } = {}) {
  return (await read(path, { signal, headers: {} }, "blob")).content;
}

/** Change something; gives the JSON answer, or null where there is none. */
export async function send(method, path, body, { signal } = {}) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  if (method === "POST" && !path.includes("dry_run=")) headers["Idempotency-Key"] = randomName();
  const options = { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal };
  for (let tries = 1; ; tries += 1) {
    const answer = await attempt(path, options);
    if (answer && !isAway(answer)) {
      if (!answer.isFine) throw await refusalOf(answer);
      return answer.content ? JSON.parse(answer.content) : null;
    }
    if (tries === SENDS) throw await unanswered(answer);
    await pause(pauseS(tries), signal);
  }
}

/** Ask again and again, `everyS` seconds apart while the page is looked at, and show each answer. */
export async function poll(path, { signal, everyS = 3 }, show) {
  while (!signal.aborted) {
    show(await get(typeof path === "function" ? path() : path, { signal }));
    await pause(everyS, signal);
    await untilSeen(signal);
  }
}

/** Show a job each time that it changes, until `signal` fires; `show(job)` may be async. */
export async function watchJob(id, { signal }, show) {
  const path = `/jobs/${encodeURIComponent(id)}`;
  let job = await get(path, { signal });
  while (!signal.aborted) {
    await show(job);
    await untilSeen(signal);
    const isQueued = job.progress.queue_position !== null; // its place moves without the job's version
    const next = await changed(path, etagOf(job), isQueued ? 4 : 25, signal);
    job = next ?? (isQueued ? await get(path, { signal }) : job);
  }
}

/** Wait for seconds, or until `signal` fires: then it throws, like all that was broken off. */
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => (clearTimeout(timer), reject(signal.reason));
    const timer = setTimeout(() => (signal?.removeEventListener("abort", stop), resolve()), seconds * 1000);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** Put a query behind a path; what is null, undefined or empty is left out, arrays are given one by one. */
export function withQuery(path, query) {
  const parts = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of [value].flat()) if (one !== null && one !== undefined && one !== "") parts.append(name, one);
  }
  const text = parts.toString();
  return text ? `${path}${path.includes("?") ? "&" : "?"}${text}` : path;
}

async function changed(path, etag, wait, signal) {
  try {
    return await get(path, { signal, etag, wait });
  } catch (error) {
    if (error.code !== "quota_exceeded") throw error; // this owner waits for as much as it may: ask now and then
    await pause(5, signal);
    return get(path, { signal, etag });
  }
}

async function read(path, options, kind) {
  for (let tries = 1; ; tries += 1) {
    options.signal?.throwIfAborted();
    const answer = await attempt(path, options, kind);
    if (answer && (answer.isFine || answer.status === 304)) return answer;
    if (answer && !isAway(answer)) {
      const refusal = await refusalOf(answer);
      if (refusal.code !== "rate_limited") throw refusal;
    }
    await pause(pauseS(tries), options.signal);
  }
}

/** Ask once; null where no whole answer came. */
async function attempt(path, options, kind = "text") {
  const key = keyInUse();
  const headers = { Accept: "application/json", ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let answer = null;
  try {
    const response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
    const { status, statusText, ok: isFine, headers: got } = response;
    answer = { status, statusText, isFine, headers: got, content: await response[kind]() };
  } catch (error) {
    if (options.signal?.aborted) throw error;
  }
  tellOutage(answer === null || isAway(answer));
  return answer;
}

const isAway = (answer) => [502, 503, 504].includes(answer.status);
const pauseS = (tries) => Math.min(LONGEST_PAUSE_S, 0.5 * 2 ** (tries - 1)) * (0.75 + Math.random() / 2);

function tellOutage(isFailed) {
  const was = failures > 0;
  failures = isFailed ? failures + 1 : 0;
  if (was !== failures > 0) for (const listener of listeners) listener(failures > 0);
}

async function refusalOf({ status, statusText, headers, content }) {
  const retryAfterS = Number(headers.get("Retry-After")) || null;
  try {
    return new Refusal(JSON.parse(content instanceof Blob ? await content.text() : content), retryAfterS);
  } catch {
    const detail = `The API answered ${status} ${statusText}.`;
    return new Refusal({ status, code: "unreadable_answer", detail }, retryAfterS);
  }
}

async function unanswered(answer) {
  if (answer) return refusalOf(answer);
  return new Refusal({ status: 0, code: "unreachable", detail: "The API does not answer. Try again in a while." });
}

function untilSeen(signal) {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve, reject) => {
    const stop = () => reject(signal.reason);
    const seen = () => (signal?.removeEventListener("abort", stop), resolve());
    document.addEventListener("visibilitychange", seen, { once: true });
    signal?.addEventListener("abort", stop, { once: true });
  });
}

function randomName() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID is not there without TLS
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
