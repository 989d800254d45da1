// Several jobs beside each other, over k or over seeds: distilled against its controls, with error bars, and
// what each core's latents are worth against how often they fire.

import { card, empty, failure, labelled, loading, pageHead, select, table } from "/ui/components.js";
import { fill, h } from "/ui/dom.js";
import { figureBox } from "/ui/figures.js";
import { DASH, figure, jobTitle } from "/ui/format.js";
import { JobChooser } from "/ui/job_chooser.js";
import { jobLink } from "/ui/latent_names.js";
import { get, withQuery } from "/ui/service.js";

const PATH = "/figures/compare";
const OVERS = [
  ["k", "k, the active latents a token"],
  ["seed", "seeds"],
];

export async function show(root, { jobs = "", group = null, over = "k" }, signal) {
  const page = new ComparePage(over === "seed" ? "seed" : "k", signal);
  const head = pageHead("Compare");
  fill(root, head, loading());
  await page.begin(jobs.split(",").filter(Boolean), group);
  fill(root, head, page.nodes);
}

class ComparePage {
  constructor(over, signal) {
    this.signal = signal;
    this.turn = 0;
    this.chooser = new JobChooser(signal, () => this.draw());
    this.over = select(OVERS, over, { onchange: () => this.draw() });
    this.drawn = h("div", {});
    this.controls = h("div", { role: "status" });
    this.values = h("div", {});
    this.densities = h("div", { class: "cards" });
    this.figure = null;
    this.nodes = this.layout();
  }

  /** What grows stands below what keeps its height. */
  layout() {
    const over = h("div", { class: "filters" }, labelled("Over", this.over));
    this.results = [
      card("Side by side", over, this.drawn, this.controls),
      card("The values", this.values),
      card("Density against score", h("p", { class: "small" }, "Of the last core of each job: how often each latent fires, and what it is worth."), this.densities),
    ];
    this.nothing = card(null, empty("Choose jobs above: a distillation and its controls, the points of a sweep, or chains."));
    return [this.chooser.element, this.nothing, this.results];
  }

  async begin(ids, groupId) {
    await this.chooser.begin(ids, groupId);
    await this.draw();
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
      const found = await get(withQuery(PATH, query), { signal: this.signal });
      if (turn === this.turn) this.showValues(found);
    } catch (error) {
      if (this.signal.aborted || turn !== this.turn) return;
      fill(this.controls);
      fill(this.values, failure(error));
    }
  }

  drawFigure(query) {
    const alt = "The chosen jobs and their controls with error bars; the table below has the values.";
    if (this.figure) return void this.figure.again(query);
    this.figure = figureBox(PATH, { title: "Distilled and its controls", alt, query, signal: this.signal, height: "36rem" });
    fill(this.drawn, this.figure);
  }

  /** One figure a job; those that are drawn already stay. */
  drawDensities() {
    const kept = new Map([...this.densities.children].map((box) => [box.dataset.id, box]));
    fill(this.densities, [...this.chooser.chosen.values()].map((job) => kept.get(job.id) ?? densityBox(job, this.signal)));
  }

  showValues(found) {
    fill(this.controls, controlNotes(found));
    const none = empty("None of these jobs has figures to compare (yet).");
    fill(this.values, found.estimates.length ? [barsNote(found), valueTable(found)] : none);
  }
}

function densityBox(job, signal) {
  const alt = `Density against score of the latents of the last core of ${jobTitle(job)}; its lineage page has the values.`;
  const box = figureBox(`/jobs/${encodeURIComponent(job.id)}/figures/density`, { title: jobTitle(job), alt, signal, height: "16rem" });
  box.dataset.id = job.id;
  return box;
}

/** Whether what is owed to width alone can be told apart: said plainly either way. */
function controlNotes({ jobs, estimates, missing_controls: missing, left_out: leftOut, n_controls_left: nLeft }) {
  const added = jobs.filter((job) => !job.is_named);
  const links = (ids) => ids.map((id, i) => [i ? ", " : "", jobLink(id)]);
  return [
    missing.length ? missingNote(missing) : null,
    added.length ? h("p", { class: "small" }, "✓ Put beside them, as wide and without a core: ", links(added.map((job) => job.job_id)), ".") : null,
    nLeft ? h("p", { class: "small" }, `⚠ ${nLeft} more of these are left out: a comparison takes the oldest.`) : null,
    missing.length || added.length || !estimates.length ? null : h("p", { class: "small" }, "✓ None needs a width-matched control that is not among them."),
    leftOut.length ? h("p", { class: "small" }, "Left out, since they have not succeeded (yet): ", links(leftOut), ".") : null,
  ];
}

function missingNote(missing) {
  const line = ({ arm, setup, k, sentence }) => h("li", {}, `${arm}${setup ? ` (${setup})` : ""}, k = ${k}: ${sentence}`);
  return h("div", { class: "failure warn" }, h("p", {}, "⚠ A width-matched control without a core is missing."), h("ul", {}, missing.map(line)));
}

const barsNote = ({ error_bars: bars }) => h("p", { class: "small" }, `SD and error bars: ${bars.replace("null", DASH)}. Of the CE increase less is better.`);

function valueTable({ jobs, estimates }) {
  const weak = new Set(jobs.filter((job) => job.is_weak_control).map((job) => job.job_id));
  const isWeak = (found) => found.jobs.some((id) => weak.has(id));
  const columns = [
    { name: "Measure", show: ({ measure }) => measureName(measure) },
    { name: "Built around", show: (found) => found.arm },
    { name: "Setup", show: (found) => found.setup || DASH },
    { name: "k", is_number: true, show: (found) => String(found.k) },
    { name: "At", is_number: true, title: "The k or seed; all: over all seeds", show: (found) => String(found.at) },
    { name: "Mean", is_number: true, show: (found) => figure(found.mean) },
    { name: "± SD", is_number: true, show: (found) => figure(found.sd, 2) },
    { name: "n", is_number: true, show: (found) => String(found.n) },
    { name: "Jobs", show: (found) => found.jobs.map((id, i) => [i ? ", " : "", jobLink(id)]) },
    { name: "Note", show: (found) => (isWeak(found) ? "weak control: more than half of it is the distilled core" : DASH) },
  ];
  return table(columns, estimates, { caption: "Mean and standard deviation of each measure, by what the SAE is built around" });
}

/** `ce_increase_first` is that of the most nested prefix. */
function measureName(name) {
  const words = name.replace(/_first$/, "").replaceAll("_", " ").replace("ce ", "CE ");
  return name.endsWith("_first") ? `${words}, first prefix` : words;
}
