// Several jobs beside each other, over k or over seeds: distilled against its controls, with error bars, and
// what each core's latents are worth against how often they fire.

import { card, empty, failure, pageHead, select, table } from "/ui/components.js";
import { readCsv } from "/ui/csv.js";
import { fill, h } from "/ui/dom.js";
import { figureBox } from "/ui/figures.js";
import { DASH, figure, jobTitle } from "/ui/format.js";
import { JobChooser } from "/ui/job_chooser.js";
import { jobLink } from "/ui/latent_names.js";
import { blob, withQuery } from "/ui/service.js";

const PATH = "/figures/compare";
const OVERS = [
  ["k", "k, the active latents a token"],
  ["seed", "seeds"],
];

export async function show(root, { jobs = "", group = null, over = "k" }, signal) {
  const page = new ComparePage(over === "seed" ? "seed" : "k", signal);
  fill(root, pageHead("Compare"), page.nodes());
  await page.begin(jobs.split(",").filter(Boolean), group);
}

class ComparePage {
  constructor(over, signal) {
    this.signal = signal;
    this.turn = 0;
    this.chooser = new JobChooser(signal, () => this.draw());
    this.over = select(OVERS, over, { id: "over", onchange: () => this.draw() });
    this.drawn = h("div", {});
    this.controls = h("div", { role: "status" });
    this.values = h("div", {});
    this.densities = h("div", { class: "cards" });
    this.figure = null;
  }

  nodes() {
    const over = h("div", { class: "field narrow" }, h("label", { for: "over" }, "Over"), this.over);
    this.results = [
      card("Side by side", over, this.controls, this.drawn),
      card("The values", this.values),
      card("Density against score", h("p", { class: "small" }, "Of the last core of each job: how often each latent fires, and what it is worth."), this.densities),
    ];
    this.nothing = card(null, empty("Choose jobs above: a distillation and its controls, the points of a sweep, or chains."));
    return [this.chooser.element, this.nothing, this.results];
  }

  async begin(ids, groupId) {
    this.showResults(false);
    await this.chooser.begin(ids, groupId);
    if (this.chooser.ids.length) await this.draw();
  }

  showResults(isThere) {
    for (const part of this.results) part.hidden = !isThere;
    this.nothing.hidden = isThere;
  }

  /** Show what is chosen now; the address follows, so that it can be sent to somebody. */
  async draw() {
    const ids = this.chooser.ids;
    const query = { jobs: ids.join(","), over: this.over.value };
    history.replaceState(null, "", withQuery("#/compare", ids.length ? query : {}));
    this.showResults(ids.length > 0);
    if (!ids.length) return;
    this.drawFigure(query);
    this.drawDensities();
    const turn = (this.turn += 1);
    try {
      const text = await (await blob(withQuery(`${PATH}.csv`, query), { signal: this.signal })).text();
      if (turn === this.turn) this.showValues(readCsv(text));
    } catch (error) {
      if (this.signal.aborted || turn !== this.turn) return;
      fill(this.controls);
      fill(this.values, failure(error));
    }
  }

  drawFigure(query) {
    const alt = "The chosen jobs and their controls with error bars; the table below has the values.";
    if (this.figure) return void this.figure.again(query);
    this.figure = figureBox(PATH, { title: "Distilled and its controls", alt, query, signal: this.signal });
    fill(this.drawn, this.figure);
  }

  /** One figure a job; those that are drawn already stay. */
  drawDensities() {
    const kept = new Map([...this.densities.children].map((box) => [box.dataset.id, box]));
    fill(this.densities, [...this.chooser.chosen.values()].map((job) => kept.get(job.id) ?? densityBox(job, this.signal)));
  }

  showValues(rows) {
    const missing = rows.filter((row) => row.measure === "");
    const found = rows.filter((row) => row.measure !== "");
    fill(this.controls, controlNotes(missing, found));
    fill(this.values, found.length ? valueTable(found) : empty("None of these jobs has figures to compare (yet)."));
  }
}

function densityBox(job, signal) {
  const alt = `Density against score of the latents of the last core of ${jobTitle(job)}; its lineage page has the values.`;
  const box = figureBox(`/jobs/${encodeURIComponent(job.id)}/figures/density`, { title: jobTitle(job), alt, signal, height: "16rem" });
  box.dataset.id = job.id;
  return box;
}

/** Whether what is owed to width alone can be told apart: said plainly either way. */
function controlNotes(missing, found) {
  if (missing.length) {
    const sentences = missing.map(({ arm, setup, k, note }) => h("li", {}, `${arm}${setup ? ` (${setup})` : ""}, k = ${k}: ${note}`));
    return h("div", { class: "failure warn" }, h("p", {}, "⚠ A width-matched control without a core is missing:"), h("ul", {}, sentences));
  }
  return found.length ? h("p", { class: "small" }, "✓ Wherever a core makes an SAE wider, one without a core and as wide is among them.") : null;
}

function valueTable(rows) {
  const number = (text) => (text === "" ? null : Number(text));
  const columns = [
    { name: "Measure", show: (row) => row.measure.replaceAll("_", " ") },
    { name: "Built around", show: (row) => row.arm },
    { name: "Setup", show: (row) => row.setup || DASH },
    { name: "k", is_number: true, show: (row) => row.k },
    { name: "At", is_number: true, title: "The k or seed; all: over all seeds", show: (row) => row.at },
    { name: "Mean", is_number: true, show: (row) => figure(number(row.mean)) },
    { name: "± SD", is_number: true, title: "Sample standard deviation; none of a single job", show: (row) => figure(number(row.sd), 2) },
    { name: "n", is_number: true, show: (row) => row.n },
    { name: "Jobs", show: (row) => row.jobs.split(" ").filter(Boolean).map((id, i) => [i ? ", " : "", jobLink(id)]) },
    { name: "Note", show: (row) => row.note || DASH },
  ];
  return table(columns, rows, { caption: "Mean and standard deviation of each measure, by what the SAE is built around" });
}
