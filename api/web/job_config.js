// What was asked for? Every resolved setting, what differs from the job it was cloned from, and what really ran.

import { facts, table } from "/ui/components.js";
import { h } from "/ui/dom.js";
import { plain } from "/ui/format.js";

/** The settings of a job as rows: [["sae.k", 32], ...]. Lists stay whole, and so does what is null. */
export function settingsOf(config, before = "") {
  return Object.entries(config).flatMap(([name, value]) => {
    const key = before ? `${before}.${name}` : name;
    const isSection = value !== null && typeof value === "object" && !Array.isArray(value);
    return isSection ? settingsOf(value, key) : [[key, value]];
  });
}

/** The settings of a job, with their difference to the job that it was cloned from. */
export function configPanel(job) {
  return h("div", {}, originOf(job), changesOf(job), inUse(job), allOf(job));
}

function originOf(job) {
  const named = [
    ["Id", h("code", {}, job.id)],
    ["Preset", job.preset],
    ["Cloned from", job.cloned_from ? jobLink(job.cloned_from) : null],
    ["Same as", job.identical_to ? h("span", {}, jobLink(job.identical_to), ", which had finished with the same config, data and code") : null],
    ["Group", job.group_id ? h("a", { href: `#/jobs?group_id=${job.group_id}` }, job.group_id) : null],
    ["Notes", job.notes],
  ];
  return facts(named);
}

function changesOf(job) {
  if (!job.cloned_from) return null;
  const rows = Object.entries(job.changes ?? {});
  const title = h("h3", {}, "What differs from that job");
  if (!rows.length) return [title, h("p", {}, "Nothing: it is the same config.")];
  const columns = [
    { name: "Setting", show: ([name]) => h("code", {}, name) },
    { name: "There", show: ([, change]) => plain(change.from) },
    { name: "Here", show: ([, change]) => plain(change.to) },
  ];
  return [title, table(columns, rows, { caption: "Settings that differ from the job it was cloned from" })];
}

function inUse(job) {
  if (!job.in_use) return null;
  const rows = Object.entries(job.in_use).map(([name, value]) => [name, h("code", {}, plain(value))]);
  return [h("h3", {}, "What really ran"), facts(rows)];
}

function allOf(job) {
  const columns = [
    { name: "Setting", show: ([name]) => h("code", {}, name) },
    { name: "Value", show: ([, value]) => plain(value) },
  ];
  const rows = settingsOf(job.config);
  return [h("h3", {}, "Every setting"), table(columns, rows, { caption: "Every setting of the job" })];
}

const jobLink = (id) => h("a", { href: `#/jobs/${id}` }, h("code", {}, id));
