// One latent: where it was learned, its path through the cycles, who carries it on, who is like it, where it
// fires, and a box to try it on a text of one's own.

import { findCaller } from "/ui/callers.js";
import { button, card, empty, facts, failure, loading, pageHead, select, table } from "/ui/components.js";
import { fill, h } from "/ui/dom.js";
import { DASH, figure, percent } from "/ui/format.js";
import { jobLink, kindText, latentLink } from "/ui/latent_names.js";
import { pathHead, pathSentence, pathTable } from "/ui/latent_path.js";
import { promptCard } from "/ui/prompt_card.js";
import { get, withQuery } from "/ui/service.js";
import { snippetCard } from "/ui/snippet_card.js";

export async function show(root, { id }, signal) {
  const head = pageHead(`Latent ${shortId(id)}`);
  fill(root, head, loading());
  const [story, caller] = await Promise.all([get(`/latents/${encodeURIComponent(id)}`, { signal }), findCaller({ signal })]);
  const places = coresOf(story);
  const texts = snippetCard(id, signal);
  const prompt = promptCard(id, { signal, caller });
  const choose = (place) => {
    texts.read(place.core_id);
    prompt.choose(place);
  };
  fill(
    root,
    head,
    originCard(story),
    card("Its path", pathTable(story.own, story)),
    places.length > 1 ? corePicker(places, choose) : null,
    texts,
    descendantsCard(story, signal),
    matchesCard(story),
    places.length ? prompt : null, // its answer, which comes late, moves nothing as long as it is the last
  );
  if (places.length) choose(places.at(-1));
  else texts.read(null);
}

const shortId = (id) => id.replace(/^(.*)(.{8}\.\d+\.\d+)$/, "…$2");

/** The cores that cycles selected with it, its own job's first: of each there are texts, and prompts can be asked. */
function coresOf({ own, descendants }) {
  const of = (path) => path.selections.map((one) => ({ core_id: one.core_id, job: path.job_id, cycle: one.cycle_index, name: path.name ?? `…${path.job_id.slice(-8)}` }));
  const isThere = (path) => path.deleted_at === null;
  return [...descendants.filter(isThere).flatMap(of), ...(isThere(own) ? of(own) : [])];
}

function corePicker(places, choose) {
  const last = places.length - 1;
  const field = select(places.map((place, i) => [String(i), `cycle ${place.cycle} of ${place.name}`]), String(last), {
    id: "core",
    onchange: () => choose(places[Number(field.value)]),
  });
  return h("div", { class: "filters" }, h("div", { class: "field" }, h("label", { for: "core" }, "In the core of"), field));
}

function originCard(story) {
  const learned = story.origin_kind === "learned" ? "Learned" : `Made as part of a core of ${kindText(story.origin_kind)}`;
  const isAlive = story.last_cycle !== null && story.dropped_at === null;
  const state = story.dropped_at !== null ? `dropped in cycle ${story.dropped_at}` : isAlive ? "in the core" : "never selected";
  return card(
    null,
    h("p", {}, h("span", { class: `badge ${isAlive ? "succeeded" : ""}` }, state), " ", `${learned} in cycle ${story.origin_cycle} of `, pathHead(story.own), "."),
    facts([
      ["Id", h("code", {}, story.latent_id)],
      ["Times selected", `${story.times_selected}, without a break`],
      ["Share", `${percent(story.last_share, 2)} in the last cycle that selected it, ${percent(story.max_share, 2)} at most`],
      ["Row", `${story.origin_index} of the SAE that learned it`],
    ]),
  );
}

/** Jobs that carry its encoder vector on, page by page. */
function descendantsCard(story, signal) {
  const list = h("div", { class: "descendants" });
  const wrong = h("div", {});
  let cursor = story.descendants_cursor;
  const add = (paths) => list.append(...paths.map((path) => descendant(path, story)));
  const more = button("Show more", async () => {
    try {
      const page = await get(withQuery(`/latents/${encodeURIComponent(story.latent_id)}/descendants`, { cursor }), { signal });
      add(page.items);
      cursor = page.next_cursor;
      more.hidden = cursor === null;
      fill(wrong);
    } catch (error) {
      if (!signal.aborted) fill(wrong, failure(error));
    }
  });
  more.hidden = cursor === null;
  add(story.descendants);
  const about = h("p", { class: "small" }, "Jobs of anybody whose cores carry this latent's own encoder vector.");
  return card("Descendants", about, story.descendants.length ? list : empty("No other job carries it."), wrong, more);
}

/** A job that carries it; its path there is shown when it is asked for. */
function descendant(path, story) {
  const name = path.name ?? `…${path.job_id.slice(-8)}`;
  const body = h("div", { hidden: true });
  const open = button("Its path there", () => {
    if (!body.firstChild) fill(body, pathTable(path, story));
    body.hidden = !body.hidden;
    open.setAttribute("aria-expanded", String(!body.hidden));
  }, { "aria-expanded": "false" });
  const head = h("p", {}, pathHead(path), `: ${pathSentence(path)}`);
  return h("div", { class: "descendant", role: "group", "aria-label": `In ${name}` }, head, open, body);
}

function matchesCard({ matches, has_more_matches: hasMore }) {
  const columns = [
    { name: "Latent", show: (one) => latentLink(one.latent_id) },
    { name: "Is", show: () => h("span", { class: "tag" }, "≈ match") },
    { name: "Learned by", show: (one) => jobLink(one.origin_job_id, { isLineage: true }) },
    { name: "Cosine", is_number: true, title: "Of the two decoder rows", show: (one) => figure(one.decoder_cosine, 3) },
    { name: "Firing", is_number: true, title: "Correlation of their activations on the same tokens", show: (one) => figure(one.firing_correlation, 3) },
    { name: "Mean", is_number: true, title: "Mean largest cosine of all latents of the two cores", show: (one) => figure(one.best_cosine, 3) },
    { name: "By chance", is_number: true, title: "The same with random directions in the place of one core", show: (one) => figure(one.best_cosine_random, 3) },
    { name: "Found by", show: (one) => jobLink(one.match_job_id) },
  ];
  const about = h("p", { class: "small" }, "Latents that were learned elsewhere, point the same way and fire at the same tokens. A match is no descendant: nothing was handed on.");
  const rest = hasMore ? h("p", { class: "small" }, `Shown are the best ${matches.length}.`) : null;
  const found = matches.length ? table(columns, matches, { caption: "Latents of other chains and jobs that match it" }) : empty("No match has found one.");
  return card("Matches", about, found, rest);
}
