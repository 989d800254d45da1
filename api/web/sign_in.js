// How does somebody sign in? By the API key, which this tab keeps until it is closed and nobody else sees.

import { button, labelled, pageHead, prose } from "/ui/components.js";
import { fill, h } from "/ui/dom.js";
import { get, keyInUse, useKey } from "/ui/service.js";

/** Ask for a key in `root`, try it, and call `done` once it is one. `refusal`: why it is asked for. */
export function signIn(root, refusal, { done }) {
  const had = keyInUse();
  const field = h("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const place = labelled("API key", field, { hint: prose("Made by an administrator with `dmsae keys create`.") });
  async function enter(event) {
    event.preventDefault();
    const key = field.value.trim();
    if (!/^[!-~]+$/.test(key)) return field.refuse("A key is letters, digits and signs without spaces.");
    field.refuse("");
    useKey(key);
    try {
      await get("/jobs?limit=1");
      done();
    } catch (error) {
      useKey(had);
      field.refuse(error.code === "unauthorized" ? "This is not a valid key of this service." : error.message);
      field.focus();
    }
  }
  const why = refusal ? h("p", {}, had ? refusal.message : "This service asks for a key.") : null;
  const form = h("form", { class: "narrow card", onsubmit: enter }, why, place, button("Sign in", null, { kind: "primary", type: "submit" }));
  fill(root, pageHead("Sign in"), form);
  field.focus();
}
