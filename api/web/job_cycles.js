// How do a job's cycles compare? Side by side: a column each, a row for each figure; the running one's are live.

import { badge, card, empty, scrolling } from "/ui/components.js";
import { fill, h, say } from "/ui/dom.js";
import { duration, figure, percent } from "/ui/format.js";

/** The card of cycles. `show(job, cycles, lastLoss)`: cells are filled anew where they stand. */
export class Cycles {
  constructor() {
    this.place = h("div", {}, empty("No cycle is known yet."));
    this.element = card("Cycles side by side", this.place);
    this.cells = null;
  }

  show(job, cycles, lastLoss) {
    if (!this.cells || this.cells[0].length !== cycles.length) this.build(job, cycles);
    cycles.forEach((cycle, column) => {
      const live = cycle.state === "running" && job.progress.cycle_index === cycle.index ? job.progress.latest : null;
      const at = { cycle, metrics: cycle.metrics ?? {}, live: live ?? {}, loss: lastLoss(cycle.index) };
      this.rows.forEach((row, index) => say(this.cells[index][column], row.show(at)));
      if (this.states[column].word !== cycle.state) {
        this.states[column].word = cycle.state;
        fill(this.states[column], badge(cycle.state));
      }
    });
  }

  build(job, cycles) {
    this.rows = rowsOf(job.config);
    this.cells = this.rows.map(() => cycles.map(() => h("td", { class: "number" })));
    this.states = cycles.map(() => h("td", { class: "number" }));
    const head = h("tr", {}, h("td", {}), cycles.map(({ index }) => h("th", { scope: "col", class: "number" }, `Cycle ${index}`)));
    const states = h("tr", {}, h("th", { scope: "row" }, "State"), this.states);
    const body = this.rows.map((row, index) => h("tr", {}, h("th", { scope: "row", title: row.title }, row.name), this.cells[index]));
    const shown = h("table", { class: "sides", style: { "--n": cycles.length } }, h("thead", {}, head), h("tbody", {}, states, body));
    fill(this.place, scrolling("Cycles side by side", shown));
  }
}

function rowsOf(config) {
  const nPrefixes = (config.sae?.block_widths?.length ?? 0) + 1;
  const prefixes = Array.from({ length: nPrefixes }, (_, index) => ({
    name: index === nPrefixes - 1 ? "Explained variance, all" : `Explained variance, prefix ${index + 1}`,
    show: ({ metrics, live }) => figure(metrics.explained_variance_per_prefix?.[index] ?? liveVariance(live, index, nPrefixes)),
  }));
  return [
    { name: "Training loss", title: "At the last step, summed over prefixes", show: ({ live, loss }) => figure(live.loss ?? loss) },
    ...prefixes,
    metric("Loss recovered", "lr_kept", figure, "1: the model predicts as well as before; over the kept tokens"),
    metric("Rise of the model's loss", "ce_increase", figure, "In nats per token, with the reconstruction in place"),
    metric("L0, total", "l0", figure, "Mean number of active latents of a token"),
    metric("L0, core", "l0_core", figure),
    metric("Dead latents", "dead_fraction", percent),
    metric("Core selected", "n_core", figure, "Latents that the next cycle starts from"),
    metric("… of these new", "n_new", figure),
    metric("… of these kept", "n_kept", figure),
    metric("Dropped", "n_dropped", figure),
    metric("Retention", "retention", percent, "Share of the core given that was selected again"),
    metric("Time", "seconds", duration),
    { name: "Attempts", show: ({ cycle }) => figure(cycle.n_attempts) },
  ];
}

function metric(name, key, write, title) {
  return { name, title, show: ({ metrics, live }) => write(metrics[key] ?? live[key]) };
}

function liveVariance(live, index, nPrefixes) {
  if (index === nPrefixes - 1) return live.explained_variance;
  return index === 0 ? live.explained_variance_first : undefined;
}
