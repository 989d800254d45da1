// How does training go? Step metrics of each cycle as lines, the running cycle's drawn anew as it grows.

import { button, card, failure, tell } from "/ui/components.js";
import { lineChart, lineStyle } from "/ui/chart.js";
import { fill, h } from "/ui/dom.js";
import { saveBlob } from "/ui/figures.js";
import { blob, get, withQuery } from "/ui/service.js";

const CHARTS = [
  { title: "Training loss", column: "loss" },
  { title: "Explained variance, widest prefix", column: "explained_variance" },
  { title: "Explained variance, first prefix", column: "explained_variance_first" },
  { title: "L0", column: "l0" },
  { title: "L0 of the core", column: "l0_core" },
  { title: "Share of dead latents", column: "dead_fraction" },
];
const COLUMNS = CHARTS.map(({ column }) => column);
const POINTS = 150;
const LEAST_PAUSE_MS = 2000;

/** The card of curves; `show(job)` asks for what is new, at most every two seconds. */
export class Curves {
  constructor(id, signal) {
    this.id = id;
    this.signal = signal;
    this.series = new Map();
    this.askedAt = -Infinity;
    this.charts = CHARTS.map(({ title, column }) => ({ column, ...lineChart(title, "training tokens of the cycle") }));
    this.legend = h("ul", { class: "legend" });
    const save = button("Save as CSV", () => this.save(), { kind: "quiet" });
    const grid = h("div", { class: "cards" }, this.charts.map(({ element }) => element));
    this.element = card("Curves", h("div", { class: "more" }, this.legend, save), grid);
  }

  async show(job) {
    const cycle = job.progress.cycle_index;
    const isOver = cycle === null;
    if (!isOver && performance.now() - this.askedAt < LEAST_PAUSE_MS) return;
    if (isOver && this.isWhole) return;
    this.askedAt = performance.now();
    const hasOthers = this.series.size >= job.progress.n_cycles_done && this.shownCycle === cycle;
    const wanted = { points: POINTS, column: COLUMNS, cycle_index: hasOthers && !isOver ? cycle : null };
    const found = await get(withQuery(`/jobs/${this.id}/metrics`, wanted), { signal: this.signal });
    for (const one of found.items) this.series.set(one.cycle_index, one.columns);
    this.shownCycle = cycle;
    this.isWhole = isOver;
    this.draw();
  }

  /** The training loss at a cycle's last step, as far as it is known. */
  lastLoss(cycleIndex) {
    return this.series.get(cycleIndex)?.loss?.at(-1) ?? null;
  }

  draw() {
    const cycles = [...this.series.keys()].sort((a, b) => a - b);
    fill(this.legend, cycles.map((cycle) => h("li", {}, mark(cycle), `cycle ${cycle}`)));
    for (const { column, draw } of this.charts) {
      draw(cycles.map((cycle) => {
        const columns = this.series.get(cycle);
        return { name: `cycle ${cycle}`, style: lineStyle(cycle), x: columns.n_tokens, y: columns[column] ?? [] };
      }));
    }
  }

  async save() {
    try {
      const table = await blob(`/jobs/${this.id}/metrics?format=csv&points=5000`, { signal: this.signal });
      saveBlob(table, `${this.id}-metrics.csv`);
    } catch (error) {
      if (!this.signal.aborted) tell("It could not be saved", failure(error));
    }
  }
}

const mark = (cycle) => h("i", { style: { background: lineStyle(cycle).stroke } });
