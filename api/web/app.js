// The web page: `/` sends index.html, `/ui/...` these files, and everything shown comes from the JSON API.
//
// A page is a module `pages/NAME.js` with `async function show(root, parameters, signal)`: it fills `root` and
// keeps it live until `signal` fires. Its address is the fragment: `#/jobs/ID?tab=events` gives `parameters`
// `{id: "ID", tab: "events"}`. What a page throws is shown in its place; 401 asks for a key first.

import { button, failure, loading, tell } from "/ui/components.js";
import { fill, h, say } from "/ui/dom.js";
import { keyNames, listenToKeys } from "/ui/keyboard.js";
import { keyInUse, onOutage, pause, Refusal, useKey } from "/ui/service.js";
import { signIn } from "/ui/sign_in.js";
import { nextTheme, themeChosen } from "/ui/themes.js";

const ID = "([A-Za-z0-9_.@-]+)";
const ROUTES = [
  ["jobs", /^\/jobs$/],
  ["job", new RegExp(`^/jobs/${ID}$`)],
  ["lineage", new RegExp(`^/jobs/${ID}/lineage$`)],
  ["latent", new RegExp(`^/latents/${ID}$`)],
  ["queue", /^\/queue$/],
  ["compare", /^\/compare$/],
  ["submit", /^\/submit$/],
];

const root = document.getElementById("page");
let shown = new AbortController();
let isFirst = true;

async function route() {
  shown.abort(new DOMException("another page", "AbortError"));
  shown = new AbortController();
  const { signal } = shown;
  const { name, parameters } = parse(location.hash);
  if (name === null) return void location.replace("#/jobs");
  markPage(name);
  const page = h("div", { class: `page ${name}` }, loading());
  fill(root, page);
  try {
    const module = await load(name, signal);
    if (signal.aborted) return;
    fill(page);
    const showing = module.show(page, parameters, signal);
    focusPage(page);
    await showing;
  } catch (error) {
    if (signal.aborted) return;
    if (error instanceof Refusal && error.status === 401) signIn(page, error, { done: () => (showKey(), route()) });
    else fill(page, h("h1", {}, "This could not be shown"), failure(error), button("Try again", route));
  }
}

function parse(hash) {
  const [path, query] = (hash.replace(/^#/, "") || "/jobs").split("?", 2);
  const found = ROUTES.map(([name, pattern]) => [name, pattern.exec(safeDecoded(path))]).find(([, match]) => match);
  if (!found) return { name: null };
  const [name, match] = found;
  const parameters = Object.fromEntries(new URLSearchParams(query ?? ""));
  return { name, parameters: match[1] ? { ...parameters, id: match[1] } : parameters };
}

/** Load a page's module, as long as it takes: an API that is just starting again must not break a link. */
async function load(name, signal) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await import(`/ui/pages/${name}.js${tries ? `?again=${tries}` : ""}`);
    } catch (error) {
      const answer = await fetch(`/ui/pages/${name}.js`, { signal, cache: "no-store" }).catch(() => null);
      if (answer?.status === 404) throw new Error(`this server has no page for ${name}`);
      if (answer && tries > 2) throw error;
      tellOutage(!answer);
      await pause(Math.min(8, 0.5 * 2 ** tries), signal);
    }
  }
}

function safeDecoded(path) {
  try {
    return decodeURIComponent(path);
  } catch {
    return path;
  }
}

function markPage(name) {
  const part = { job: "jobs", lineage: "jobs", latent: "jobs" }[name] ?? name;
  for (const link of document.querySelectorAll("#pages a")) {
    if (link.getAttribute("href") === `#/${part}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

/** Put the focus where the new page begins, so that it is read from there; not when the whole page was opened. */
function focusPage(page) {
  if (!isFirst) (page.querySelector("h1") ?? root).focus({ preventScroll: true });
  if (!isFirst) scrollTo(0, 0);
  isFirst = false;
}

function showKey() {
  say(document.getElementById("sign"), keyInUse() ? "Sign out" : "Sign in");
}

function showTheme() {
  say(document.getElementById("theme"), `Theme: ${themeChosen()}`);
}

function tellOutage(isAway) {
  const notice = document.getElementById("notice");
  say(notice, isAway ? "The API does not answer: reconnecting. What is shown may be old." : "");
  notice.classList.toggle("shown", isAway);
}

function signInOrOut() {
  if (keyInUse()) {
    useKey(null);
    showKey();
    return route();
  }
  shown.abort(new DOMException("another page", "AbortError"));
  const page = h("div", { class: "page" });
  fill(root, page);
  return signIn(page, null, { done: () => (showKey(), route()) });
}

function showKeys() {
  const rows = keyNames.map(([key, text]) => h("tr", {}, h("td", {}, h("kbd", {}, key)), h("td", {}, text)));
  tell("Keys", h("table", {}, h("tbody", {}, rows)));
}

document.getElementById("theme").addEventListener("click", () => (nextTheme(), showTheme()));
document.getElementById("sign").addEventListener("click", signInOrOut);
document.getElementById("help").addEventListener("click", showKeys);
document.getElementById("skip").addEventListener("click", (event) => (event.preventDefault(), root.focus()));
addEventListener("hashchange", route);
onOutage(tellOutage);
listenToKeys({ showKeys });
showTheme();
showKey();
route();
