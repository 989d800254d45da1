// The shared queue: who waits behind whom and why, which devices there are and what they run, and what each
// owner used of them within a week.

import { button, card, empty, failure, labelled, pageHead, select } from "/ui/components.js";
import { findCaller } from "/ui/callers.js";
import { fill, h, say } from "/ui/dom.js";
import { bytes, DASH, duration, moment, percent, when } from "/ui/format.js";
import { liveTable } from "/ui/live_tables.js";
import { get, poll, send, withQuery } from "/ui/service.js";
import { shareBar } from "/ui/share_bars.js";

const EVERY_S = 3;
const FEW = 50;
const MANY = 500;

export async function show(root, _, signal) {
  const wanted = { limit: FEW };
  const path = () => withQuery("/queue", { limit: wanted.limit });
  const wrong = h("div", {});
  const guarded = async (work) => {
    try {
      await work();
      page.show(await get(path(), { signal }));
      fill(wrong);
    } catch (error) {
      if (!signal.aborted) fill(wrong, failure(error));
    }
  };
  const act = (...what) => guarded(() => send(...what, { signal }));
  const more = () => guarded(() => (wanted.limit = MANY));
  const head = pageHead("Queue");
  fill(root, head, h("p", { class: "loading" }, "Loading …"));
  const caller = await findCaller({ signal });
  const page = layout(caller, { act, more });
  page.show(await get(path(), { signal }));
  fill(root, head, wrong, page.nodes);
  await poll(path, { signal, everyS: EVERY_S }, page.show);
}

/** What grows and shrinks most comes last, so that it moves nothing. */
function layout(caller, { act, more }) {
  const pausing = pauseCard(caller, act);
  const devices = devicesCard();
  const lines = linesOf(caller, { act, more });
  const owners = ownersCard();
  return {
    nodes: [pausing.node, devices.node, owners.node, lines.node],
    show: (queue) => {
      for (const part of [pausing, devices, lines, owners]) part.show(queue);
    },
  };
}

/** Whether the queue stands still; administrators may change that. */
function pauseCard(caller, act) {
  const text = h("p", { class: "why", role: "status" });
  const reason = h("input", { maxlength: 200, placeholder: "power cut at noon" });
  const pause = button("Pause the queue", () => change(true));
  const form = h("div", { class: "pausing" }, labelled("Reason, for those who wait", reason), pause);
  const resume = button("Let it go on", () => change(false), { kind: "primary" });
  const change = (isPaused) =>
    act("PATCH", "/admin/queue", isPaused && reason.value ? { is_paused: true, reason: reason.value } : { is_paused: isPaused });
  const node = h("section", { class: "card", "aria-label": "State of the queue" }, text, caller.isAdmin ? [form, resume] : null);
  return {
    node,
    show: ({ is_paused: isPaused, pause_reason: because, lines, workers }) => {
      const waits = lines.reduce((sum, line) => sum + line.n_queued, 0);
      const runs = workers.filter((worker) => worker.running).length;
      const goesOn = `${waits} ${waits === 1 ? "cycle waits" : "cycles wait"}, ${runs} of ${workers.length} devices at work.`;
      say(text, isPaused ? `❚❚ The queue is paused${because ? `: ${because}` : ""}. What runs goes on. ${goesOn}` : goesOn);
      form.hidden = isPaused;
      resume.hidden = !isPaused;
    },
  };
}

function devicesCard() {
  const none = empty("No worker is there: start one with `dmsae worker`.");
  const table = liveTable(
    [
      { name: "Device", width: "20%", text: ({ device, device_name: name }) => (name ? `${device} · ${name}` : device) },
      { name: "Host", width: "14%", wide: true, text: (worker) => worker.hostname },
      { name: "Class", width: "8%", wide: true, text: (worker) => worker.resource_class },
      { name: "Memory", width: "9%", wide: true, is_number: true, text: (worker) => bytes(worker.memory_bytes) },
      { name: "Runs", width: "30%", make: runningCell },
      { name: "Phase", width: "10%", text: ({ running }) => running?.phase ?? DASH },
      { name: "Since", width: "9%", wide: true, text: ({ running }) => (running ? when(running.opened_at) : DASH) },
    ],
    { caption: "Devices, and what each runs", key: (worker) => worker.id },
  );
  return {
    node: card("Devices", none, table),
    show: ({ workers }) => {
      none.hidden = workers.length > 0;
      table.hidden = workers.length === 0;
      table.show(workers);
    },
  };
}

function runningCell() {
  const cell = h("div", { class: "text" });
  let shown = "";
  cell.update = ({ running }) => {
    const next = running && `${running.job_id}.${running.cycle_index}.${running.job_name}`;
    if (next === shown) return;
    shown = next;
    fill(cell, running ? [jobLink(running), ` · cycle ${running.cycle_index} · ${running.owner}`] : "idle");
  };
  return cell;
}

/** One card for each class of devices for which cycles wait; once there it stays, and new ones come last. */
function linesOf(caller, doing) {
  const node = h("div", { class: "page lines" });
  const none = card("Waiting", empty("Nothing waits."));
  const cards = new Map();
  return {
    node,
    show: ({ lines }) => {
      const byClass = new Map(lines.map((line) => [line.resource_class, line]));
      for (const name of byClass.keys()) {
        if (cards.has(name)) continue;
        cards.set(name, lineCard(name, caller, doing));
        none.remove();
        node.append(cards.get(name).node);
      }
      if (!cards.size && !none.parentNode) node.append(none);
      for (const [name, line] of cards) line.show(byClass.get(name) ?? { n_queued: 0, taken_at: null, waiting: [] });
    },
  };
}

function lineCard(name, caller, { act, more }) {
  const text = h("p", { class: "small" });
  const all = button("Show more", more);
  const table = liveTable(waitingColumns(caller, act), {
    caption: `Cycles that wait for a ${name} device, in the order in which they are taken`,
    key: (waiting) => `${waiting.job_id}.${waiting.cycle_index}`,
  });
  return {
    node: card(`Waiting for ${name}`, text, table, all),
    show: ({ n_queued: n, taken_at: at, waiting }) => {
      say(text, n ? `${n} in line, as worked out at ${moment(at)}; shown are ${waiting.length}.` : "Nothing waits now.");
      all.hidden = n <= waiting.length || waiting.length >= MANY || waiting.length < FEW;
      table.show(withFirst(waiting));
    },
  };
}

/** Beside each cycle say whose come before it, as far as all of those are shown. */
function withFirst(waiting) {
  const counts = new Map();
  return waiting.map((one, i) => {
    const first = one.position === i ? [...counts].map(([owner, n]) => `${n} of ${owner}`).join(", ") : null;
    counts.set(one.owner, (counts.get(one.owner) ?? 0) + 1);
    return { ...one, first: first === "" ? "nobody" : first };
  });
}

function waitingColumns(caller, act) {
  const columns = [
    { name: "Place", width: "4rem", is_number: true, title: "How many are taken first", text: (waiting) => String(waiting.position) },
    { name: "Job", width: "17%", make: jobCell },
    { name: "Owner", width: "8%", wide: true, text: (waiting) => waiting.owner },
    { name: "Behind", width: "15%", wide: true, text: behind },
    { name: "Begins in", width: "6.5rem", wide: true, is_number: true, title: "If nothing else came", text: (waiting) => duration(waiting.starts_in_s) },
    { name: "Why it waits", width: "26%", wide: true, make: whyCell },
    { name: "Since", width: "5.5rem", wide: true, text: (waiting) => when(waiting.queued_at) },
    { name: "Memory", width: "5.5rem", wide: true, is_number: true, title: "At most, by estimate", text: (waiting) => bytes(waiting.memory_bytes) },
    { name: "Priority", width: "7rem", wide: true, make: (waiting) => priorityCell(waiting, caller, act) },
  ];
  return caller.isAdmin ? [...columns, { name: "Turn", width: "6.5rem", make: (waiting) => holdButton(waiting, act) }] : columns;
}

const behind = (waiting) => waiting.first ?? `${waiting.position} others`;

/** On a phone it says too what has no column there. */
function jobCell(waiting) {
  const short = h("div", { class: "second phone" });
  const cell = h("div", {}, h("div", { class: "text" }, jobLink(waiting), ` · cycle ${waiting.cycle_index}`), short);
  cell.update = (next) => say(short, `${next.owner}, behind ${behind(next)}. ${next.why}`);
  return cell;
}

function whyCell() {
  const cell = h("div", { class: "text long" });
  cell.update = ({ why }) => {
    say(cell, why);
    cell.title = why;
  };
  return cell;
}

function priorityCell(waiting, caller, act) {
  if (!caller.mayChange(waiting.owner)) return textOf((one) => one.priority);
  const id = encodeURIComponent(waiting.job_id);
  const path = caller.isAdmin ? `/admin/jobs/${id}` : `/jobs/${id}`;
  const field = select(["high", "normal", "low"], waiting.priority, {
    "aria-label": `Priority of ${nameOf(waiting)}`,
    onchange: () => act("PATCH", path, { priority: field.value }),
  });
  field.update = ({ priority }) => {
    if (document.activeElement !== field) field.value = priority;
  };
  return field;
}

function holdButton(waiting, act) {
  let isHeld = waiting.held;
  const path = `/admin/jobs/${encodeURIComponent(waiting.job_id)}`;
  const hold = button("", () => act("PATCH", path, { held: !isHeld }));
  hold.update = ({ held }) => {
    isHeld = held;
    say(hold, held ? "Release" : "Hold");
    hold.setAttribute("aria-label", `${held ? "Release" : "Hold"} ${nameOf(waiting)}`);
  };
  return hold;
}

function ownersCard() {
  const none = empty("Nobody has used a device within a week, and nobody waits.");
  const table = liveTable(
    [
      { name: "Owner", width: "20%", text: (owner) => owner.owner },
      { name: "Share of the week", width: "34%", make: weekBar },
      { name: "24 hours", width: "20%", wide: true, is_number: true, title: "Device time by which turns go", text: dayText },
      { name: "Runs", width: "8%", wide: true, is_number: true, text: (owner) => ofMost(owner.n_running, owner.max_running) },
      { name: "Waits", width: "9%", is_number: true, text: (owner) => ofMost(owner.n_queued, owner.max_queued) },
      { name: "Weight", width: "9%", wide: true, is_number: true, title: "Beside the weights of the others who wait", text: (owner) => String(owner.weight) },
    ],
    { caption: "What each owner used of the devices in the last seven days", key: (owner) => owner.owner },
  );
  const node = card("Shares over the week", none, table);
  node.classList.add("shares");
  return {
    node,
    show: ({ owners }) => {
      none.hidden = owners.length > 0;
      table.hidden = owners.length === 0;
      table.show([...owners].sort((a, b) => b.week_s - a.week_s || a.owner.localeCompare(b.owner)));
    },
  };
}

function weekBar() {
  const bar = shareBar();
  bar.update = ({ week_share: share, week_s: seconds }) => bar.set(share, `${percent(share)} · ${duration(seconds)}`);
  return bar;
}

const dayText = (owner) => `${percent(owner.share)} · ${duration(owner.device_s)}`;
const ofMost = (n, most) => (most === null ? String(n) : `${n} of ${most}`);
const nameOf = (one) => one.job_name ?? `…${one.job_id.slice(-8)}`;
const jobLink = (one) => h("a", { href: `#/jobs/${one.job_id}`, "data-row": "" }, nameOf(one));

function textOf(read) {
  const cell = h("span", {});
  cell.update = (item) => say(cell, read(item));
  return cell;
}
