// What became of a latent in the cycles of a job: where it was selected, how strongly, and when it was dropped.

import { table } from "/ui/components.js";
import { scoreText } from "/ui/core_table.js";
import { h } from "/ui/dom.js";
import { DASH, figure, percent } from "/ui/format.js";
import { jobLink, kindText } from "/ui/latent_names.js";
import { shareBar } from "/ui/share_bars.js";

/** A table of a job's cycles as far as they know the latent; `latent` tells where it was learned. */
export function pathTable(path, latent) {
  const rows = steps(path, latent);
  const most = Math.max(...rows.map((row) => row.share ?? 0), 1e-9);
  const columns = [
    { name: "Cycle", show: (row) => String(row.cycle_index) },
    { name: "What happened", show: (row) => row.fate },
    { name: "Share", title: "Of the cycle's total attribution; not comparable between cycles", show: (row) => barOf(row.share, most) },
    { name: "Rank", is_number: true, title: "Among all candidates; 0 is the strongest", show: (row) => figure(row.rank) },
    { name: "Score", is_number: true, title: "Nats a token, comparable between cycles", show: scoreText },
    { name: "Density", is_number: true, title: "Share of tokens at which it fires", show: (row) => figure(row.density) },
    { name: "Cosine", is_number: true, title: "Cosine of its decoder row with that of the cycle before", show: (row) => figure(row.decoder_cosine) },
    { name: "Overlap", is_number: true, title: "Tokens at which it fires in both cycles, of those in either", show: (row) => figure(row.firing_jaccard) },
    { name: "Core", show: (row) => row.published_as ?? (row.core_id ? h("span", { class: "mono", title: row.core_id }, `…${row.core_id.slice(-8)}`) : DASH) },
  ];
  return table(columns, rows, { caption: `Its path through the cycles of ${path.name ?? path.job_id}` });
}

/** One sentence on what a job did with it. */
export function pathSentence(path) {
  const parts = [];
  if (path.given) parts.push(`given as part of a core (${coreName(path.given)})`);
  if (path.selections.length) parts.push(`selected in ${cycles(path.selections)}`);
  if (path.drops.length) parts.push(`dropped in ${cycles(path.drops)}`);
  return parts.length ? `${parts.join("; ")}.` : "nothing is recorded.";
}

/** The head of a job's part: who it is and whose. */
export function pathHead(path) {
  const name = path.deleted_at ? `${path.name ?? `…${path.job_id.slice(-8)}`} (deleted)` : jobLink(path.job_id, { name: path.name, isLineage: true });
  return h("span", {}, name, ` · ${path.kind} of ${path.owner}`);
}

function steps(path, latent) {
  const isOwn = path.job_id === latent.origin_job_id;
  const given = path.given ? [{ ...path.given, fate: `given, in a core of kind ${coreName(path.given)}` }] : [];
  const selected = path.selections.map((one) => ({ ...one, fate: selectedAs(one, isOwn && one.cycle_index === latent.origin_cycle) }));
  const dropped = path.drops.map((one) => ({ ...one, fate: "dropped: not selected again" }));
  const order = (row) => row.cycle_index * 2 + (given.includes(row) ? 0 : 1);
  return [...given, ...selected, ...dropped].sort((a, b) => order(a) - order(b));
}

const selectedAs = (one, isFirst) =>
  isFirst ? "learned and selected" : one.times_selected > 1 ? `selected, ${one.times_selected} times without a break` : "selected";
const coreName = ({ core_kind: kind, published_as: name }) => (name ? `${kindText(kind)}, ${name}` : kindText(kind));
const cycles = (places) => (places.length === 1 ? `cycle ${places[0].cycle_index}` : `cycles ${places.map((one) => one.cycle_index).join(", ")}`);

function barOf(share, most) {
  const bar = shareBar();
  bar.set(share === null ? null : share / most, share === null ? DASH : percent(share, 2));
  return bar;
}
