// What did a job leave? Its stored files with links that work for a while, and the end of what trainers printed.

import { badge, button, empty, failure, table } from "/ui/components.js";
import { fill, h } from "/ui/dom.js";
import { bytes, moment } from "/ui/format.js";
import { get } from "/ui/service.js";

/** The stored files; links are made anew when they are asked for. */
export function filesPanel(id, signal) {
  const columns = [
    { name: "Cycle", is_number: true, show: (file) => file.cycle_index },
    { name: "File", show: (file) => h("a", { href: file.url, download: "", rel: "noreferrer" }, file.name) },
    { name: "Size", is_number: true, show: (file) => bytes(file.size_bytes) },
    { name: "SHA-256", show: (file) => h("code", { title: file.sha256 }, `${file.sha256.slice(0, 12)}…`) },
  ];
  return asked(`/jobs/${id}/artifacts`, signal, "Nothing is stored before a cycle has finished.", ({ items }) => [
    h("p", { class: "small" }, "Links need no key, and work for a while: ask again when one has run out."),
    table(columns, items, { caption: "Stored files" }),
  ]);
}

/** What a probe found, as the API tells it. */
export function resultPanel(path, signal) {
  return asked(path, signal, "It has no result yet.", ({ result }) =>
    result ? h("pre", { class: "log", tabindex: "0", "aria-label": "Result" }, JSON.stringify(result, null, 2)) : null,
  );
}

/** What each attempt's trainer printed last. */
export function outputPanel(id, signal) {
  return asked(`/jobs/${id}/logs`, signal, "No attempt was made yet.", ({ items }) => items.map(attempt));
}

function attempt(log) {
  const times = `${moment(log.opened_at)} to ${log.closed_at ? moment(log.closed_at) : "now"}`;
  return h(
    "details",
    { open: log.outcome !== "succeeded" },
    h("summary", {}, `Cycle ${log.cycle_index}, attempt ${log.attempt_number} `, badge(log.outcome ?? "running")),
    h("p", { class: "small" }, `${times}, on ${log.worker_id}. ${log.error?.message ?? ""}`),
    h("pre", { class: "log", tabindex: "0", "aria-label": "Output" }, log.text || "It printed nothing."),
  );
}

/** What a path answers, with a button that asks again. */
function asked(path, signal, nothing, show) {
  const place = h("div", {});
  async function ask() {
    try {
      const found = await get(path, { signal });
      fill(place, (found.items?.length === 0 ? null : show(found)) ?? empty(nothing));
    } catch (error) {
      if (!signal.aborted) fill(place, failure(error));
    }
  }
  ask();
  return h("div", {}, h("div", { class: "more" }, button("Ask again", ask, { kind: "quiet" })), place);
}
