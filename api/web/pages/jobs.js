// Which jobs are there? All of the lab's, a page at a time, live: rows are places that are filled anew, so that
// nothing moves while one reads. While the pointer or the focus is on the table, new jobs wait for a click.

import { badge, button, empty, labelled, pageHead, select, table } from "/ui/components.js";
import { fill, h, say } from "/ui/dom.js";
import { count, duration, jobTitle, percent, when } from "/ui/format.js";
import { poll, withQuery } from "/ui/service.js";

const ROWS = 50;
const FILTERS = ["text", "state", "kind", "owner", "model", "tag", "group_id"];
const RARE = ["tag", "group_id"];
const STATES = ["queued", "running", "cancelling", "succeeded", "failed", "cancelled"];
const COLUMNS = [
  ["Job", ""], ["State", "8.5rem"], ["Where it stands", "34%"], ["Model", "16%"], ["Owner", "10%"], ["Since", "6.5rem"],
];
const KINDS = ["distillation", "training", "probe"];

export async function show(root, parameters, signal) {
  const list = new List(parameters, signal);
  fill(
    root,
    pageHead("Jobs", h("a", { class: "button primary", href: "#/submit" }, "Submit")),
    filters(parameters, (wanted) => list.narrow(wanted)),
    list.element,
  );
  await list.run();
}

function filters(parameters, narrow) {
  const search = (attributes) => h("input", { type: "search", maxlength: 200, spellcheck: "false", ...attributes });
  const fields = {
    text: search({ "data-filter": true, value: parameters.text, placeholder: "name or notes" }),
    state: select([["", "any"], ...STATES], parameters.state ?? ""),
    kind: select([["", "any"], ...KINDS], parameters.kind ?? ""),
    owner: search({ value: parameters.owner, placeholder: "anyone" }),
    model: search({ value: parameters.model, placeholder: "any" }),
    tag: search({ value: parameters.tag }),
    group_id: search({ value: parameters.group_id }),
  };
  const more = moreButton(() => FILTERS.filter((name) => name !== "text" && fields[name].value.trim()).length);
  let timer;
  const wanted = () => Object.fromEntries(FILTERS.map((name) => [name, fields[name].value.trim()]));
  const later = () => (more.count(), clearTimeout(timer), (timer = setTimeout(() => narrow(wanted()), 250)));
  const labels = { text: "Text", state: "State", kind: "Kind", owner: "Owner", model: "Model", tag: "Tag", group_id: "Group" };
  const offered = FILTERS.filter((name) => !RARE.includes(name) || parameters[name]);
  const boxes = offered.map((name) => labelled(labels[name], fields[name]));
  return h(
    "form",
    { class: "filters card", role: "search", "aria-label": "Filter jobs", oninput: later, onsubmit: (event) => event.preventDefault() },
    boxes[0],
    more,
    boxes.slice(1),
  );
}

/** On a phone, what opens the filters beside the text; it says how many of them are set. */
function moreButton(nSet) {
  const more = button("", () => {
    const isOpen = more.closest("form").classList.toggle("open");
    more.setAttribute("aria-expanded", String(isOpen));
  }, { kind: "more-filters", "aria-expanded": "false" });
  more.count = () => say(more, nSet() ? `Filters: ${nSet()}` : "Filters");
  more.count();
  return more;
}

class List {
  constructor(parameters, signal) {
    this.wanted = Object.fromEntries(FILTERS.map((name) => [name, parameters[name] ?? ""]));
    this.cursor = parameters.cursor ?? null;
    this.signal = signal;
    this.shown = [];
    this.rows = Array.from({ length: ROWS }, () => new Row());
    this.table = jobTable(this.rows);
    this.nothing = empty("No job is like that.");
    this.told = h("span", { class: "small", role: "status" });
    this.fresh = button("", () => this.paint(this.latest), { hidden: true });
    this.newest = button("Newest", () => this.turn(null));
    this.older = button("Older", () => this.turn(this.next));
    const turning = h("span", { class: "tools" }, this.newest, this.older);
    const above = h("div", { class: "more" }, this.told, this.fresh, turning); // below, it would move with the rows
    this.element = h("div", { class: "card" }, above, this.table, this.nothing);
    this.nothing.hidden = true;
  }

  narrow(wanted) {
    this.wanted = wanted;
    this.turn(null);
  }

  turn(cursor) {
    this.cursor = cursor;
    history.replaceState(null, "", withQuery("#/jobs", { ...this.wanted, cursor }));
    this.asking?.abort(new DOMException("another list", "AbortError"));
  }

  /** Ask for the list again and again; from the start when another one is wanted. */
  async run() {
    while (!this.signal.aborted) {
      this.asking = new AbortController();
      this.isOther = true;
      const signal = AbortSignal.any([this.signal, this.asking.signal]);
      const path = withQuery("/jobs", { ...this.wanted, cursor: this.cursor, limit: ROWS });
      try {
        await poll(path, { signal, everyS: 2 }, (page) => this.receive(page));
      } catch (error) {
        if (!this.asking.signal.aborted || this.signal.aborted) throw error;
      }
    }
  }

  receive(page) {
    this.latest = page;
    const isSame = page.items.every((job, index) => job.id === this.shown[index]?.id);
    if (this.isOther || isSame || !this.isInUse()) return this.paint(page);
    const byId = new Map(page.items.map((job) => [job.id, job]));
    this.shown.forEach((job, index) => byId.has(job.id) && this.rows[index].show(byId.get(job.id)));
    const known = new Set(this.shown.map((job) => job.id));
    const n = page.items.filter((job) => !known.has(job.id)).length;
    say(this.fresh, n ? `Show ${n} new` : "Show the list as it is now");
    this.fresh.hidden = false;
    return undefined;
  }

  isInUse() {
    return this.table.matches(":hover") || this.table.contains(document.activeElement);
  }

  paint(page) {
    this.isOther = false;
    this.shown = page.items;
    this.next = page.next_cursor;
    this.rows.forEach((row, index) => row.show(page.items[index] ?? null));
    this.nothing.hidden = page.items.length > 0;
    this.table.hidden = page.items.length === 0;
    this.fresh.hidden = true;
    this.newest.disabled = this.cursor === null;
    this.older.disabled = this.next === null;
    say(this.told, told(page.items.length, this.cursor !== null, this.next !== null));
  }
}

function told(n, isLater, hasMore) {
  if (!isLater && !hasMore) return n === 1 ? "1 job" : `${n} jobs`;
  return isLater ? `${n} older jobs` : `The newest ${n} jobs`;
}

function jobTable(rows) {
  const shown = table(COLUMNS.map(([name]) => ({ name, show: () => "" })), [], { caption: "Jobs, the newest first" });
  shown.querySelectorAll("th").forEach((head, index) => {
    head.style.width = COLUMNS[index][1];
    head.classList.toggle("wide", index > 1);
  });
  shown.querySelector("tbody").append(...rows.map((row) => row.element));
  return shown;
}

/** One place of the list. */
class Row {
  constructor() {
    this.link = h("a", { "data-row": true, href: "#/jobs" });
    this.below = second();
    this.state = h("td", {});
    this.stands = h("span", {});
    this.why = second();
    this.model = h("td", { class: "wide" });
    this.owner = h("td", { class: "wide" });
    this.since = h("td", { class: "wide" });
    this.short = h("span", { class: "second phone" });
    const name = h("td", {}, this.link, this.below, this.short);
    const stands = h("td", { class: "wide" }, this.stands, this.why);
    this.element = h("tr", { hidden: true }, name, this.state, stands, this.model, this.owner, this.since);
  }

  show(job) {
    this.element.hidden = job === null;
    if (job === null) return;
    const address = `#/jobs/${job.id}`;
    if (this.link.getAttribute("href") !== address) this.link.setAttribute("href", address);
    say(this.link, jobTitle(job));
    say(this.below, [job.name ? job.kind : null, job.preset, ...job.tags].filter(Boolean).join(" · "));
    if (this.word !== job.state) fill(this.state, badge((this.word = job.state)));
    say(this.stands, standing(job));
    say(this.short, `${job.owner}: ${standing(job)}`);
    say(this.why, whyOf(job));
    this.why.title = whyOf(job);
    say(this.model, job.model);
    this.model.title = job.model ?? "";
    say(this.owner, job.owner);
    say(this.since, when(job.finished_at ?? job.started_at ?? job.created_at));
  }
}

const second = () => h("span", { class: "second" });

function standing(job) {
  const { n_cycles, n_cycles_done, cycle_index, phase, latest, queue_position } = job.progress;
  if (cycle_index === null) return `${n_cycles_done} of ${n_cycles} cycles done`;
  const cycle = `cycle ${cycle_index + 1} of ${n_cycles}`;
  if (phase === null) return queue_position === null ? `${cycle}, queued` : `${cycle}, ${queue_position} before it`;
  const isTraining = latest?.n_steps > 0 && phase === "training";
  return isTraining ? `${cycle}, ${phase} ${percent(latest.step / latest.n_steps, 0)}` : `${cycle}, ${phase}`;
}

function whyOf(job) {
  if (job.state_reason) return job.state_reason;
  const { latest, time_left_s } = job.progress;
  const parts = [];
  if (latest?.tokens_per_s) parts.push(`${count(latest.tokens_per_s)} tokens/s`);
  if (time_left_s !== null && job.finished_at === null) parts.push(`${duration(time_left_s)} left`);
  return parts.join(" · ");
}
