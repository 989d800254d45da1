// A box for a prompt of one's own: a probe on the queue says where the latent fires in it, and what the model
// says next as it is, and with the latent ablated or steered.

import { card, failure, labelled, select, table } from "/ui/components.js";
import { fill, h, say } from "/ui/dom.js";
import { duration, figure, percent } from "/ui/format.js";
import { jobLink } from "/ui/latent_names.js";
import { get, send, watchJob } from "/ui/service.js";
import { firingText, shades, visible } from "/ui/firing_texts.js";

const LONGEST = 20_000;
const OVER = ["succeeded", "failed", "cancelled"];
const CHANGES = [
  ["ablate", "taken away (ablated)"],
  ["steer", "added (steered)"],
  ["", "as it is"],
];

const ABOUT = "A short job on the queue: where the latent fires in your text, and what the model says next.";
const TITLE = "Try it on a text";

/** A card; `choose({job, cycle})` says in which core the latent is meant. */
export function promptCard(latentId, { signal, caller }) {
  if (!caller.maySubmit) return refusalCard();
  const text = h("textarea", { rows: 3, required: true, maxlength: LONGEST, placeholder: "The capital of France is" });
  const change = select(CHANGES, "ablate", { onchange: () => showStrength() });
  const strength = h("input", { type: "number", step: "any", min: -1e6, max: 1e6 });
  const strengthBox = labelled("Strength", strength, { hint: "In the model's own units: as much as the latent adds at such an activation; negative, the opposite." });
  const ask = h("button", { type: "submit", class: "primary" }, "Ask");
  const told = h("p", { class: "why", role: "status" });
  const answer = h("div", { class: "answer" });
  let core = null;
  let asking = null;
  const showStrength = () => (strengthBox.hidden = !(strength.required = change.value === "steer"));
  showStrength();

  const body = () => ({
    kind: "prompt",
    core: { job: core.job, cycle: core.cycle },
    latent: latentId,
    prompt: text.value,
    ...(change.value && { change: change.value === "steer" ? { kind: "steer", strength: Number(strength.value) } : { kind: "ablate" } }),
  });
  async function submit(event) {
    event.preventDefault();
    asking?.abort(new DOMException("another prompt", "AbortError"));
    asking = new AbortController();
    const mine = AbortSignal.any([signal, asking.signal]);
    fill(answer);
    try {
      say(told, "Sending …");
      const probe = await send("POST", "/probes", body(), { signal: mine });
      const result = await resultOf(probe.id, { told, signal: mine });
      if (result === null) return;
      fill(answer, resultParts(result, latentId));
      if (!strength.value) strength.value = Number((latentOf(result, latentId).max_activation ?? 0).toPrecision(2)) || "";
    } catch (error) {
      if (mine.aborted) return;
      say(told, "");
      fill(answer, failure(error));
    }
  }
  const form = h(
    "form",
    { class: "prompt", onsubmit: submit },
    labelled("Prompt", text),
    h("div", { class: "filters" }, labelled("Beside what the model says, say it with the latent", change), strengthBox),
    h("div", {}, ask),
  );
  const box = card(TITLE, h("p", { class: "small" }, ABOUT), form, told, answer);
  box.choose = (place) => (core = place);
  return box;
}

/** What stands there for those who may only read. */
function refusalCard() {
  const why = "That is a job, and this key is a reader's: sign in with one that may submit to ask.";
  const box = card(TITLE, h("p", { class: "small" }, ABOUT), h("p", {}, why));
  box.choose = () => undefined;
  return box;
}

/** Say where a probe stands until it has ended; gives what it found, or null. */
async function resultOf(id, { told, signal }) {
  const ended = new AbortController();
  const job = await new Promise((resolve, reject) => {
    watchJob(id, { signal: AbortSignal.any([signal, ended.signal]) }, (next) => {
      fill(told, standing(next), " ", jobLink(id, { name: "The probe" }));
      if (OVER.includes(next.state)) resolve(next);
    }).catch(reject);
  });
  ended.abort(new DOMException("it has ended", "AbortError"));
  return job.state === "succeeded" ? (await get(`/probes/${encodeURIComponent(id)}`, { signal })).result : null;
}

function standing(job) {
  const { phase, queue_position: place, starts_in_s: startsIn } = job.progress;
  if (job.state === "queued") {
    const when = startsIn === null ? "" : ` It begins in about ${duration(startsIn)}.`;
    return job.state_reason ?? (place === null ? "It waits in the queue." : `It waits; ${place} before it.${when}`);
  }
  if (job.state === "succeeded") return "Done.";
  return job.state_reason ?? (phase ? `It runs: ${phase} …` : `It is ${job.state}.`);
}

/** What a prompt probe found. */
function resultParts(result, latentId) {
  const latent = latentOf(result, latentId);
  const tokens = result.tokens.map((one) => one.token);
  const max = latent.max_activation ?? 0;
  const peak = latent.activations.reduce((best, value, i) => (value > (latent.activations[best] ?? 0) ? i : best), 0);
  const fires = max > 0 ? `Strongest: ${figure(max, 3)} at “${visible(tokens[peak]).trim()}”, in the model's own units.` : "It fires nowhere in this text.";
  return [
    h("h3", {}, "Where it fires"),
    h("p", {}, firingText(tokens, latent.activations, { max, peak: max > 0 ? peak : null })),
    h("p", { class: "small" }, fires),
    max > 0 ? shades(max) : null,
    h("h3", {}, "What the model says next"),
    h("div", { class: "lens" }, said("As it is", result.plain), result.changed ? said(changeName(result.change), result.changed) : null),
    typeof result.kl === "number" ? h("p", { class: "small" }, `Divergence (KL) between the two at the next token: ${figure(result.kl, 3)} nats.`) : null,
  ];
}

const latentOf = (result, latentId) => result.latents.find((one) => one.latent_id === latentId) ?? result.latents[0];
const changeName = (change) => (change.kind === "steer" ? `Steered by ${figure(change.strength)}` : "Ablated");

function said(title, { next, text }) {
  const columns = [
    { name: "Next token", show: ({ token }) => h("code", { class: "token" }, visible(token)) },
    { name: "Probability", is_number: true, show: ({ probability }) => percent(probability) },
  ];
  return h(
    "div",
    {},
    h("h4", {}, title),
    table(columns, next, { caption: `Likeliest next tokens: ${title.toLowerCase()}` }),
    text ? h("p", { class: "continuation" }, h("span", { class: "small" }, "It goes on: "), h("q", { translate: "no" }, visible(text))) : null,
  );
}
