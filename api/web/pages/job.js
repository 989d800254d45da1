// One job: where it stands, its cycles, curves, events, settings and files, live; and what can be done about it.

import { readAdvice } from "/ui/advice.js";
import { card, failure, loading, pageHead, tabs } from "/ui/components.js";
import { fill, h, say } from "/ui/dom.js";
import { jobTitle } from "/ui/format.js";
import { Actions } from "/ui/job_actions.js";
import { configPanel } from "/ui/job_config.js";
import { Curves } from "/ui/job_curves.js";
import { Cycles } from "/ui/job_cycles.js";
import { Events } from "/ui/job_events.js";
import { filesPanel, outputPanel, resultPanel } from "/ui/job_files.js";
import { lastFigures, Standing } from "/ui/job_standing.js";
import { get, watchJob } from "/ui/service.js";

export async function show(root, { id }, signal) {
  const actions = new Actions(id, signal);
  const head = pageHead("Job");
  const about = h("p", { class: "about" });
  const more = card(null);
  const wait = loading();
  fill(root, head, wait);
  const parts = {
    standing: new Standing(await readAdvice({ signal })), cycles: new Cycles(), curves: new Curves(id, signal),
    events: new Events(id, signal),
  };
  let seen = null;
  await watchJob(id, { signal }, async (job) => {
    await Promise.all([showCycles(job, parts, seen, signal), parts.events.show()]);
    name(head, about, job);
    actions.show(job);
    parts.standing.show(job, lastFigures(parts.cycles.known ?? [], (index) => parts.curves.lastLoss(index)));
    parts.job = job;
    if (seen === null) {
      head.lastChild.append(...actions.buttons);
      fill(more, h("h2", { class: "unseen" }, "More"), panels(parts, signal));
      wait.replaceWith(about, actions.refusal, parts.standing.element, parts.cycles.element, parts.curves.element, more);
      parts.events.follow();
    }
    seen = job;
  });
}

function name(head, about, job) {
  say(head.querySelector("h1"), jobTitle(job));
  document.title = `${jobTitle(job)} · DMSAE`;
  const shown = JSON.stringify([job.owner, job.model, job.priority, job.tags]);
  if (about.shown === shown) return; // its links keep the focus
  about.shown = shown;
  const tags = job.tags.map((tag) => [" ", h("a", { class: "tag", href: `#/jobs?${new URLSearchParams({ tag })}` }, tag)]);
  fill(about, `A ${job.kind} of ${job.owner}`, job.model ? `, over ${job.model}` : "", `, priority ${job.priority}`, tags);
}

function panels(parts, signal) {
  const path = parts.job.links.probe;
  return tabs("About this job", [
    ...(path ? [{ name: "Result", make: () => resultPanel(path, signal), isRemade: true }] : []),
    { name: "Events", make: () => parts.events.element },
    { name: "Config", make: () => configPanel(parts.job), isRemade: true },
    { name: "Files", make: () => filesPanel(parts.job.id, signal), isRemade: true },
    { name: "Output", make: () => outputPanel(parts.job.id, signal), isRemade: true },
  ]);
}

/** Show cycles and curves; the list of cycles is asked for when a cycle moved on, not with every step. */
async function showCycles(job, { cycles, curves }, seen, signal) {
  const path = job.links.cycles;
  if (!path) {
    cycles.element.hidden = curves.element.hidden = true;
    return;
  }
  try {
    await curves.show(job);
    if (!cycles.known || moved(job, seen)) cycles.known = (await get(path, { signal })).items;
    cycles.show(job, cycles.known, (index) => curves.lastLoss(index));
  } catch (error) {
    if (signal.aborted) throw error;
    fill(cycles.place, failure(error));
    cycles.cells = null;
  }
}

function moved(job, seen) {
  const marks = ({ state, run, progress }) =>
    [state, run, progress.n_cycles_done, progress.cycle_index, progress.attempt_number].join();
  return seen === null || marks(job) !== marks(seen);
}
