// The texts at which a latent fires, as one core's cycle saw it: its density, the tokens that it promotes and
// suppresses, and texts of each tenth of its activations.

import { card, empty, facts, failure, loading, table } from "/ui/components.js";
import { fill, h } from "/ui/dom.js";
import { figure } from "/ui/format.js";
import { get, withQuery } from "/ui/service.js";
import { shades, snippetList, visible } from "/ui/firing_texts.js";

const N_OPEN = 1;

/** A card; `read(coreId)` shows what is stored of the latent in that core. */
export function snippetCard(latentId, signal) {
  const place = h("div", { class: "texts" });
  const box = card("Where it fires", place);
  let turn = 0;
  box.read = async (coreId) => {
    const mine = (turn += 1);
    fill(place, loading("Reading its texts …", "18rem"));
    try {
      const path = withQuery(`/latents/${encodeURIComponent(latentId)}/snippets`, { core: coreId });
      const found = await get(path, { signal });
      if (mine === turn) fill(place, shown(found));
    } catch (error) {
      if (!signal.aborted && mine === turn) fill(place, error.status === 404 ? empty(error.message) : failure(error));
    }
  };
  return box;
}

function shown(found) {
  const { density, max_activation: max, deciles, logit_lens: lens, n_firings: n, n_tokens: of } = found;
  return [
    facts([
      ["Density", `${figure(density)}${n === undefined ? "" : `: it fires at ${figure(n)} of ${figure(of)} tokens`}`],
      ["Strongest", `${figure(max)}, at the scale that the SAE sees`],
    ]),
    lens ? lensTables(lens) : null,
    h("h3", {}, "Texts, the strongest tenth of its activations first"),
    deciles.length ? [shades(max), deciles.map((decile, i) => decileBox(decile, max, i < N_OPEN))] : empty("It never fired in the text that was set aside for this."),
  ];
}

function decileBox({ decile, from, to, n_firings: n, snippets }, max, isOpen) {
  const range = `${figure(from, 3)} to ${figure(to, 3)}`;
  const many = n === undefined ? "" : `, ${figure(n)} ${n === 1 ? "token" : "tokens"}`;
  const texts = snippets.length ? snippetList(snippets, max) : h("p", { class: "small" }, "No text is kept of this tenth.");
  return h("details", { class: "decile", open: isOpen }, h("summary", {}, `Tenth ${decile}: ${range}${many}`), texts);
}

/** What its decoder row does to the next token's logits: the words at both ends. */
export function lensTables({ promoted, suppressed, final_norm: norm }) {
  const columns = [
    { name: "Token", show: ({ token }) => h("code", { class: "token" }, visible(token)) },
    { name: "Logit", is_number: true, show: ({ value }) => figure(value, 3) },
  ];
  const side = (title, rows) => h("div", {}, h("h3", {}, title), rows.length ? table(columns, rows, { caption: `Tokens: ${title.toLowerCase()}` }) : empty("None."));
  const gain = { folded: "The gain of the model's last norm is in it.", left_out: "The model's last norm is left out." }[norm];
  return [
    h("div", { class: "lens" }, side("Promotes", promoted), side("Suppresses", suppressed)),
    h("p", { class: "small" }, "Its decoder row times the unembedding: what it would do to the next token if nothing lay between. Only the order means something. ", gain),
  ];
}
