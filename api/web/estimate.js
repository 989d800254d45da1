// What would a submission be? The answer of a dry run: widths, memory, time, each with where it comes from.

import { facts, table } from "/ui/components.js";
import { h } from "/ui/dom.js";
import { bytes, duration, figure } from "/ui/format.js";

/** Show a dry run's answer, of one job or of several. */
export function estimate(answer) {
  if (!answer.jobs) return h("div", {}, ofJob(answer));
  const [first] = answer.jobs;
  const hours = answer.jobs.map((job) => job.gpu_hours.value);
  const total = hours.every((value) => value !== null) ? hours.reduce((sum, value) => sum + value, 0) : null;
  const sum = total === null ? null : `${figure(total, 3)} GPU-hours in all.`;
  return h("div", {}, h("p", {}, `${answer.n_jobs} jobs. ${sum ?? ""} The first of them:`), ofJob(first));
}

function ofJob(job) {
  const known = [
    ["GPU-hours", quantity(job.gpu_hours, (value) => figure(value, 3))],
    ["Time", quantity(job.time, duration)],
    ["Memory", quantity(job.memory, bytes)],
    ["Memory of its machine", job.host_memory.value === null ? null : quantity(job.host_memory, bytes)],
    ["Largest core", figure(job.max_core)],
    ["Stored, at most", bytes(storedBytes(job.cycles))],
    ["Deleted", job.retention_days === null ? "never" : `${figure(job.retention_days)} days after its end`],
  ];
  return [repeated(job), facts(known), h("h3", {}, "Widths, cycle by cycle"), widths(job.cycles)];
}

function repeated(job) {
  if (!job.identical_to) return null;
  const link = h("a", { href: `#/jobs/${job.identical_to}` }, "A job with the same config, data and code");
  return h("p", { class: "badge warn wide" }, link, " has finished: this one would give the same result.");
}

/** A figure and where it comes from; without a figure, why there is none. */
function quantity({ value, source }, write) {
  if (value === null) return h("span", { class: "small" }, source);
  return h("span", {}, h("strong", {}, write(value)), h("span", { class: "hint source" }, source));
}

function widths(cycles) {
  const bound = (cycle) => (cycle.is_exact ? "" : "≤ ");
  const columns = [
    { name: "Cycle", is_number: true, show: (cycle) => cycle.cycle_index },
    { name: "Core", is_number: true, show: (cycle) => `${bound(cycle)}${figure(cycle.n_core)}` },
    { name: "Prefix widths", show: (cycle) => `${bound(cycle)}${cycle.prefix_widths.map((width) => figure(width)).join(" · ")}` },
    { name: "Stored", is_number: true, show: (cycle) => bytes(cycle.stored_bytes) },
  ];
  if (cycles.some((cycle) => cycle.gpu_hours !== null)) {
    columns.push({ name: "GPU-hours", is_number: true, show: (cycle) => figure(cycle.gpu_hours, 3) });
  }
  return table(columns, cycles, { caption: "Widths of each cycle: exact in cycle 0, bounds later" });
}

function storedBytes(cycles) {
  const sizes = cycles.map((cycle) => cycle.stored_bytes);
  return sizes.every((size) => size !== null) ? sizes.reduce((sum, size) => sum + size, 0) : null;
}
