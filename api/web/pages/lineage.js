// The lineage of a job: which cycle its latents come from, who was kept, new and dropped, and its cores.

import { badge, button, card, empty, failure, loading, pageHead, scrolling, table } from "/ui/components.js";
import { CoreTable } from "/ui/core_table.js";
import { fill, h, say } from "/ui/dom.js";
import { figureBox, saveBlob } from "/ui/figures.js";
import { DASH, figure, jobTitle, percent } from "/ui/format.js";
import { jobLink } from "/ui/latent_names.js";
import { blob, get, watchJob } from "/ui/service.js";

const HEIGHT = "26rem";
const FIGURES = {
  origins: ["Core latents by the cycle that learned them", "Stacked bars: for each cycle, how many latents of its core come from each earlier cycle. The table below tells the same."],
  flow: ["Latents kept, new and dropped in each cycle", "A flow of latents through the cycles; the table of kept, new and dropped ones tells the same."],
};

export async function show(root, { id }, signal) {
  let page = null;
  await watchJob(id, { signal }, async (job) => {
    if (page === null) page = await open(root, job, signal);
    await page.show(job);
  });
}

async function open(root, job, signal) {
  const back = h("a", { class: "button", href: `#/jobs/${job.id}` }, "The job");
  const head = pageHead(`Lineage of ${jobTitle(job)}`, back);
  if (job.kind === "probe") {
    fill(root, head, empty("A probe selects no core, so it has no lineage."));
    return { show: () => undefined };
  }
  const page = new LineagePage(job, signal);
  fill(root, head, loading());
  await page.show(job);
  fill(root, head, page.nodes());
  return page;
}

class LineagePage {
  constructor(job, signal) {
    this.base = `/${job.kind}s/${encodeURIComponent(job.id)}`;
    this.id = job.id;
    this.signal = signal;
    this.n_done = null;
    this.told = h("p", { class: "why", role: "status" });
    this.wrong = h("div", {});
    this.origins = h("div", {});
    this.retention = h("div", {});
    this.core = new CoreTable(this.base, job.id, signal);
    this.figures = Object.entries(FIGURES).map(([name, [title, alt]]) => {
      const path = `/jobs/${encodeURIComponent(job.id)}/figures/${name}`;
      return figureBox(path, { title, alt, signal, height: HEIGHT, waiting: "No cycle has finished yet." });
    });
  }

  /** What grows comes last. */
  nodes() {
    const [origins, flow] = this.figures;
    const matrix = h("details", {}, h("summary", {}, "Origins as a table"), this.origins);
    const saves = ["csv", "parquet"].map((format) => button(format === "csv" ? "CSV" : "Parquet", () => this.save(format), { kind: "quiet" }));
    return [
      this.told,
      this.wrong,
      card("Where each core comes from", origins, matrix),
      card("From cycle to cycle", flow),
      card("Kept, new, dropped", this.retention),
      card("Every latent that any core held", h("div", { class: "tools" }, "A row for each place in each cycle. Save as", saves)),
      card("The core, latent by latent", this.core.element),
    ];
  }

  /** Show what the job has now; figures and tables are read again only when another cycle has finished. */
  async show(job) {
    const { n_cycles: n, n_cycles_done: done } = job.progress;
    const isOver = ["succeeded", "failed", "cancelled"].includes(job.state);
    say(this.told, isOver ? `${done} of ${n} cycles; the job has ${job.state}.` : `${done} of ${n} cycles so far; this page follows as more finish.`);
    if (done === this.n_done) return;
    try {
      await this.read(done);
      this.n_done = done;
      fill(this.wrong);
    } catch (error) {
      if (!this.signal.aborted) fill(this.wrong, failure(error));
    }
  }

  async read(n_done) {
    const [cycles, origins] = await Promise.all(
      ["cycles", "origins"].map((name) => get(`${this.base}/${name}`, { signal: this.signal })),
    );
    const finished = cycles.items.filter((cycle) => cycle.state === "succeeded");
    fill(this.retention, retentionTable(cycles.items));
    fill(this.origins, originTable(origins, this.id));
    if (n_done === 0) return fill(this.core.told, "No cycle has selected a core yet.");
    for (const one of this.figures) one.again();
    const cores = finished.filter((cycle) => cycle.output_core_id !== null).map((cycle) => cycle.index);
    if (this.core.offer(cores)) await this.core.reload();
    return undefined;
  }

  async save(format) {
    try {
      saveBlob(await blob(`${this.base}/lineage?format=${format}`, { signal: this.signal }), `${this.id}-lineage.${format}`);
    } catch (error) {
      if (!this.signal.aborted) fill(this.wrong, failure(error));
    }
  }
}

function retentionTable(cycles) {
  const number = (name, read, text = figure, title) => ({ name, title, is_number: true, show: ({ metrics }) => text(read(metrics ?? {})) });
  const given = (metrics) => (metrics.n_kept === undefined ? null : metrics.n_kept + metrics.n_dropped);
  const columns = [
    { name: "Cycle", show: (cycle) => String(cycle.index) },
    { name: "State", show: (cycle) => badge(cycle.state) },
    number("Given", given, figure, "Latents of the core that it was given"),
    number("Kept", (metrics) => metrics.n_kept),
    number("Dropped", (metrics) => metrics.n_dropped),
    number("New", (metrics) => metrics.n_new),
    number("Core", (metrics) => metrics.n_core, figure, "Latents that it selected"),
    number("Retention", (metrics) => metrics.retention, percent, "Kept of those given; none in cycle 0"),
    number("Share held", (metrics) => metrics.share, percent, "Of the cycle's total attribution, by its core"),
    number("Overlap", (metrics) => metrics.firing_jaccard_median, figure, "Median over latents: tokens at which one fires in both cycles, of those in either"),
    number("Borderline", (metrics) => metrics.n_borderline, figure, "Selected, but not by both halves of the documents"),
  ];
  return table(columns, cycles, { caption: "What each cycle kept of the core that it was given, and what it added" });
}

function originTable({ cycles, origins, matrix }, jobId) {
  if (!cycles.length) return empty("No cycle has finished yet.");
  const name = (origin) =>
    origin.job_id === jobId ? `Cycle ${origin.cycle_index}` : ["Cycle ", String(origin.cycle_index), " of ", jobLink(origin.job_id, { isLineage: true })];
  const head = h("tr", {}, h("th", { scope: "col" }, "Core of"), origins.map((origin) => h("th", { scope: "col", class: "number" }, name(origin))));
  const rows = cycles.map((cycle, i) =>
    h("tr", {}, h("th", { scope: "row" }, `Cycle ${cycle}`), matrix[i].map((n) => h("td", { class: "number" }, n ? figure(n) : DASH))),
  );
  const caption = "How many latents of each cycle's core (row) come from which cycle (column)";
  return scrolling(caption, h("table", {}, h("caption", { class: "unseen" }, caption), h("thead", {}, head), h("tbody", {}, rows)));
}
