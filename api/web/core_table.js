// The latents of one cycle's core: a table that is sorted by any column, narrowed by how often a latent was
// selected, and read page by page along the API's cursor. To sort by what the API does not sort by, all rows
// are read first, up to a bound that is told.

import { button, failure, labelled, select } from "/ui/components.js";
import { fill, h, say } from "/ui/dom.js";
import { DASH, figure, percent } from "/ui/format.js";
import { latentLink, originText } from "/ui/latent_names.js";
import { liveTable, sortRows } from "/ui/live_tables.js";
import { get, withQuery } from "/ui/service.js";

const PAGE = 100;
const LARGEST_PAGE = 1000;
const MOST = 5000;
const AS_STORED = { name: "Place", isDown: false };

export class CoreTable {
  /** `base` is `/distillations/ID` or `/trainings/ID`. */
  constructor(base, jobId, signal) {
    Object.assign(this, { base, signal, sort: AS_STORED, rows: [], next: null, n_shown: PAGE });
    this.last = Promise.resolve();
    this.columns = coreColumns(jobId);
    this.cycle = select([["", "the last"]], "", { onchange: () => this.reload() });
    this.selected = h("input", { type: "number", min: 1, step: 1, value: 1, "data-filter": "", onchange: () => this.reload() });
    this.told = h("p", { class: "small", role: "status" });
    this.wrong = h("div", {});
    this.more = button("Show more", () => this.showMore());
    this.table = liveTable(this.columns, {
      caption: "Latents of the core",
      key: (latent) => latent.latent_id,
      sort: this.sort,
      onsort: (sort) => this.sortBy(sort),
    });
    const filters = h(
      "div",
      { class: "filters" },
      labelled("Core of cycle", this.cycle),
      labelled("Selected at least so many times", this.selected),
    );
    this.element = h("div", { class: "core" }, filters, this.told, this.wrong, this.table, this.more);
  }

  /** Offer the cycles that selected a core; gives whether they are others than before. */
  offer(cycles) {
    const values = ["", ...cycles.map(String)];
    if (values.join() === [...this.cycle.options].map((one) => one.value).join()) return false;
    const chosen = this.cycle.value;
    fill(this.cycle, values.map((value) => h("option", { value }, value === "" ? "the last" : `cycle ${value}`)));
    this.cycle.value = values.includes(chosen) ? chosen : "";
    return true;
  }

  reload() {
    return this.inTurn(async () => {
      const page = await this.read(null, PAGE);
      Object.assign(this, { rows: page.items, next: page.next_cursor, about: page, n_shown: PAGE });
      await this.complete();
    });
  }

  sortBy(sort) {
    this.sort = sort;
    return this.inTurn(() => {
      this.n_shown = PAGE;
      return this.complete();
    });
  }

  showMore() {
    return this.inTurn(async () => {
      if (this.n_shown >= this.rows.length) await this.readOn(PAGE);
      this.n_shown += PAGE;
      this.paint();
    });
  }

  /** Read the rest of the core where the order needs all of it. */
  async complete() {
    const isAsStored = () => this.sort.name === AS_STORED.name && !this.sort.isDown;
    while (!isAsStored() && this.next && this.rows.length < MOST) {
      say(this.told, `Reading the core to sort it: ${this.rows.length} of ${this.about.n_latents} …`);
      await this.readOn(LARGEST_PAGE);
    }
    this.paint();
  }

  async readOn(limit) {
    if (!this.next) return;
    const page = await this.read(this.next, limit);
    Object.assign(this, { rows: [...this.rows, ...page.items], next: page.next_cursor });
  }

  read(cursor, limit) {
    const query = { cycle_index: this.cycle.value, min_selected: this.selected.value || 1, cursor, limit };
    return get(withQuery(`${this.base}/core`, query), { signal: this.signal });
  }

  paint() {
    const shown = sortRows(this.rows, this.columns, this.sort).slice(0, this.n_shown);
    this.table.show(shown);
    this.more.hidden = !this.next && shown.length === this.rows.length;
    const { n_latents: n, cycle_index: cycle } = this.about;
    const least = Number(this.selected.value || 1);
    const part = least > 1 ? `, those selected at least ${least} times` : "";
    const cut = this.next && this.rows.length >= MOST ? ` Sorted are only the first ${MOST}; the CSV has all.` : "";
    say(this.told, `Core of cycle ${cycle}, of ${n} latents${part}: ${shown.length} shown.${cut}`);
  }

  /** Do one thing after the other: two that read on at once would read the same page. */
  inTurn(work) {
    this.last = this.last.then(() => this.guarded(work));
    return this.last;
  }

  async guarded(work) {
    try {
      await work();
      fill(this.wrong);
    } catch (error) {
      if (this.signal.aborted) return;
      fill(this.wrong, failure(error));
      this.table.show([]);
      this.more.hidden = true;
      say(this.told, "");
    }
  }
}

function coreColumns(jobId) {
  const number = (name, read, text = figure, title) => ({ name, title, is_number: true, by: read, text: (latent) => text(read(latent)) });
  return [
    { name: "Place", title: "Its row in the core, and in the next cycle's SAE", by: (latent) => latent.core_index, text: (latent) => String(latent.core_index) },
    { name: "Latent", by: (latent) => latent.latent_id, make: (latent) => latentLink(latent.latent_id, jobId, { "data-row": "" }) },
    { name: "Origin", title: "Where its encoder vector was learned", by: originKey, text: (latent) => originText(latent, jobId) },
    number("Selected", (latent) => latent.times_selected, String, "In how many unbroken cycles up to this one"),
    number("Share", (latent) => latent.share, (value) => percent(value, 2), "Of the cycle's total attribution"),
    number("Rank", (latent) => latent.rank, figure, "Among all candidates; 0 is the strongest"),
    { ...number("Score", (latent) => latent.score, figure, "Nats a token"), text: scoreText },
    number("Density", (latent) => latent.density, figure, "Share of tokens at which it fires"),
    number("Cosine", (latent) => latent.decoder_cosine, figure, "Cosine of its decoder row with that of the cycle before"),
    number("Overlap", (latent) => latent.firing_jaccard, figure, "Tokens at which it fires in both cycles, of those in either"),
    { name: "Sure", title: "Whether two halves of the documents agree that it is selected", by: (latent) => String(latent.is_borderline), text: sureText },
  ];
}

/** Sorts origins of one job by cycle, and jobs by when they were made. */
const originKey = (latent) => `${latent.origin_job_id} ${latent.origin_cycle}`;
const sureText = ({ is_borderline: is }) => (is === null ? DASH : is ? "borderline" : "yes");

export function scoreText({ score, score_se: error }) {
  return typeof error === "number" ? `${figure(score)} ± ${figure(error, 2)}` : figure(score);
}
