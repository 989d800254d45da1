// Submit a distillation or a training: a form made from the API's own schema, tried out as one types.
// `#/submit?clone=ID` begins with the settings of a job, and sends what differs; `?kind=training` is the other form.

import { button, card, failure, labelled, loading, pageHead, select } from "/ui/components.js";
import { fill, h } from "/ui/dom.js";
import { estimate } from "/ui/estimate.js";
import { jobTitle } from "/ui/format.js";
import { ObjectField } from "/ui/schema_form.js";
import { bodySchema } from "/ui/schemas.js";
import { get, Refusal, send } from "/ui/service.js";

const ABOUT = ["preset", "name", "tags", "notes", "priority", "sweep"];
const HIDDEN = ["clone", "set", "chain_index"];
const PAUSE_MS = 400;

export async function show(root, parameters, signal) {
  const asked = parameters.kind === "training" ? "training" : "distillation";
  const head = pageHead("Submit", parameters.clone ? null : kindChoice(asked));
  const wait = loading();
  fill(root, head, wait);
  const source = parameters.clone ? await get(`/jobs/${encodeURIComponent(parameters.clone)}`, { signal }) : null;
  const kind = source?.kind ?? asked;
  const { schema, components } = bodySchema(await get("/openapi.json", { signal }), `/${kind}s`);
  const form = new Form(kind, { schema, components, source, signal });
  wait.replaceWith(h("div", {}, origin(source), form.element));
  await form.tryOut();
}

function kindChoice(kind) {
  const go = (event) => (location.hash = `#/submit?kind=${event.target.value}`);
  return labelled("What", select(["distillation", "training"], kind, { onchange: go }));
}

function origin(source) {
  if (!source) return null;
  const link = h("a", { href: `#/jobs/${source.id}` }, jobTitle(source));
  return h("p", {}, "A clone of ", link, ": its settings are below, and only what you change is sent.");
}

class Form {
  constructor(kind, { schema, components, source, signal }) {
    this.kind = kind;
    this.source = source;
    this.signal = signal;
    const names = Object.keys(schema.properties).filter((name) => !HIDDEN.includes(name));
    const about = ABOUT.filter((name) => names.includes(name) && !(source && name === "preset"));
    const part = (chosen) => ({ properties: Object.fromEntries(chosen.map((name) => [name, schema.properties[name]])) });
    this.about = new ObjectField("", part(about), components);
    this.settings = new ObjectField("", part(names.filter((name) => !ABOUT.includes(name))), components);
    this.refusals = h("div", {});
    this.result = h("div", { class: "result", "aria-live": "polite" }, loading("Trying it out …"));
    this.start();
    this.element = this.layout();
  }

  start() {
    this.settings.fields.get("sae").element.open = true;
    if (this.source) this.settings.base(this.source.config);
    else if (this.kind === "distillation") this.about.find(["preset"]).input.value = "demo";
  }

  layout() {
    this.go = button("Submit", null, { kind: "primary", type: "submit" });
    const form = h(
      "form",
      { novalidate: true, oninput: () => this.later(), onchange: () => this.later(), onsubmit: (event) => this.submit(event) },
      card("About it", this.about.element),
      card("Settings", h("p", { class: "hint" }, this.saying()), this.settings.element),
      this.refusals,
      h("div", { class: "tools" }, this.go),
    );
    return h("div", { class: "columns" }, form, h("aside", { "aria-label": "What it would be", tabindex: "0" }, card("What it would be", this.result)));
  }

  saying() {
    if (this.source) return "A field that is emptied stays as it is in that job.";
    return this.kind === "training"
      ? "What is left empty is as in the job that the core comes from."
      : "What is left empty is as in the preset, or its default.";
  }

  body() {
    const settings = this.settings.value();
    const about = this.about.value();
    return this.source ? { ...about, clone: this.source.id, ...(settings && { set: settings }) } : { ...about, ...settings };
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.tryOut(), PAUSE_MS);
  }

  /** Ask what it would be; a newer question breaks off an older one. */
  async tryOut() {
    this.trying?.abort(new DOMException("asked anew", "AbortError"));
    this.trying = new AbortController();
    const signal = AbortSignal.any([this.signal, this.trying.signal]);
    try {
      const answer = await send("POST", `/${this.kind}s?dry_run=true`, this.body(), { signal });
      this.clear();
      this.hint((answer.jobs ?? [answer])[0].config);
      fill(this.result, estimate(answer));
    } catch (error) {
      if (!signal.aborted) this.refuse(error);
    }
  }

  async submit(event) {
    event.preventDefault();
    clearTimeout(this.timer);
    this.trying?.abort(new DOMException("submitted", "AbortError"));
    this.go.disabled = true;
    try {
      const made = await send("POST", `/${this.kind}s`, this.body(), { signal: this.signal });
      location.hash = made.jobs ? `#/jobs?group_id=${made.group_id}` : `#/jobs/${made.id}`;
    } catch (error) {
      this.go.disabled = false;
      if (this.signal.aborted) return;
      this.refuse(error);
      this.element.querySelector("[aria-invalid]")?.focus();
    }
  }

  hint(config) {
    this.settings.hint(config);
  }

  clear() {
    fill(this.refusals);
    for (const field of [...this.about.all(), ...this.settings.all()]) field.refuse("");
  }

  /** Put each refusal beside its field, and what has no field above the button. */
  refuse(error) {
    this.clear();
    const errors = error instanceof Refusal ? error.errors : [];
    const homeless = errors.filter((one) => !this.place(one));
    const isAll = errors.length > 0 && homeless.length === 0;
    if (isAll) fill(this.result, h("p", { class: "small" }, "It cannot be submitted like this: see what is said beside the fields."));
    else fill(this.result, h("p", { class: "small" }, "It cannot be submitted like this."));
    if (!isAll) fill(this.refusals, homeless.length ? homelessList(homeless) : failure(error));
  }

  place({ param, rule }) {
    const parts = param.replace(/^set\./, "").split(".");
    const field = this.about.find(parts) ?? this.settings.find(parts);
    if (!field?.refuse) return false;
    field.refuse(rule);
    for (let above = field.element; above; above = above.parentElement?.closest("details")) {
      if (above.tagName === "DETAILS") above.open = true;
    }
    return true;
  }
}

function homelessList(errors) {
  const lines = errors.map(({ param, rule }) => h("li", {}, h("code", {}, param), `: ${rule}`));
  return h("div", { class: "failure", role: "alert" }, h("ul", {}, lines));
}
