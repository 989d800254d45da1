// Which jobs are to be compared? Those that have succeeded, found by text, one by one or a group as a whole.

import { button, card, empty, failure, labelled } from "/ui/components.js";
import { fill, h, say } from "/ui/dom.js";
import { jobTitle, when } from "/ui/format.js";
import { get, withQuery } from "/ui/service.js";

const FOUND = 30;
const LATER_MS = 250;

export class JobChooser {
  /** `onchange(ids)` is called with what is chosen now. */
  constructor(signal, onchange) {
    Object.assign(this, { signal, onchange, chosen: new Map(), found: [], turn: 0 });
    this.search = h("input", { type: "search", spellcheck: "false", "data-filter": "", placeholder: "name or notes", oninput: () => this.later() });
    this.chips = h("ul", { class: "chips", "aria-label": "Chosen jobs" });
    this.list = h("ul", { class: "choices" });
    this.told = h("p", { class: "small", role: "status" });
    this.wrong = h("div", {});
    this.element = card("Jobs to compare", labelled("Find jobs that have succeeded", this.search), this.told, this.wrong, this.list, this.chips);
  }

  get ids() {
    return [...this.chosen.keys()];
  }

  /** Choose jobs by id, and all of a group, as an address names them. */
  async begin(ids, groupId) {
    await this.find();
    await this.guarded(async () => {
      if (groupId) await this.addGroup(groupId);
      const jobs = await Promise.all(ids.map((id) => get(`/jobs/${encodeURIComponent(id)}`, { signal: this.signal })));
      for (const job of jobs) this.chosen.set(job.id, job);
    });
    this.paint();
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.find(), LATER_MS);
  }

  async find() {
    const turn = (this.turn += 1);
    await this.guarded(async () => {
      const text = this.search.value.trim();
      const kinds = ["distillation", "training"];
      const pages = await Promise.all(
        kinds.map((kind) => get(withQuery("/jobs", { state: "succeeded", kind, text, limit: FOUND }), { signal: this.signal })),
      );
      if (turn !== this.turn) return;
      this.found = pages.flatMap((page) => page.items).sort((a, b) => b.created_at.localeCompare(a.created_at));
      this.paint();
    });
  }

  async addGroup(groupId) {
    const group = await get(`/groups/${encodeURIComponent(groupId)}`, { signal: this.signal });
    for (const job of group.jobs) if (job.kind !== "probe" && job.state === "succeeded") this.chosen.set(job.id, job);
  }

  set(job, isChosen) {
    if (isChosen) this.chosen.set(job.id, job);
    else this.chosen.delete(job.id);
    this.changed();
  }

  changed() {
    this.paint();
    this.onchange(this.ids);
  }

  paint() {
    fill(this.chips, [...this.chosen.values()].map((job) => this.chip(job)));
    this.chips.hidden = this.chosen.size === 0;
    say(this.told, `${this.chosen.size} chosen. The newest ${this.found.length} that have succeeded${this.search.value.trim() ? " and are like that" : ""}:`);
    const kept = new Map([...this.list.children].map((one) => [one.dataset.id, one]));
    fill(this.list, this.found.length ? this.found.map((job) => this.choice(job, kept.get(job.id))) : empty("No finished job is like that."));
  }

  chip(job) {
    const remove = button("✕", () => this.set(job, false), { kind: "quiet", "aria-label": `Leave out ${jobTitle(job)}` });
    return h("li", { class: "tag" }, h("a", { href: `#/jobs/${job.id}` }, jobTitle(job)), remove);
  }

  /** A line of the list; the one that is there already is used again, so that the focus stays on it. */
  choice(job, known) {
    if (known) {
      known.querySelector("input").checked = this.chosen.has(job.id);
      return known;
    }
    const box = h("input", { type: "checkbox", "data-row": "", checked: this.chosen.has(job.id), onchange: () => this.set(job, box.checked) });
    const whole = async () => {
      await this.guarded(() => this.addGroup(job.group_id));
      this.changed();
    };
    const group = job.group_id ? button("and its group", whole, { kind: "quiet", "aria-label": `${jobTitle(job)} and its group` }) : null;
    const about = h("span", { class: "small" }, ` ${job.kind} of ${job.owner}, ${when(job.finished_at)}`);
    return h("li", { dataset: { id: job.id } }, h("label", {}, box, " ", h("span", {}, jobTitle(job)), about), group);
  }

  async guarded(work) {
    try {
      await work();
      fill(this.wrong);
    } catch (error) {
      if (!this.signal.aborted) fill(this.wrong, failure(error));
    }
  }
}
