// How does a JSON schema become a form? A field for each property, found by its path (`sae.k`) when the API
// refuses one. Nothing is checked here: what cannot be read as its type is sent as it is, and the API says why not.

import { labelled, prose, select } from "/ui/components.js";
import { fill, h } from "/ui/dom.js";
import { plain } from "/ui/format.js";
import { shapeOf } from "/ui/schemas.js";

const UNSET = "";

/** A form of an object's schema. `value()` gives what was set and differs from the base, undefined if nothing. */
export class ObjectField {
  constructor(path, shape, components, { without = [] } = {}) {
    this.path = path;
    const entries = Object.entries(shape.properties).filter(([name]) => !without.includes(name));
    this.fields = new Map(
      entries.map(([name, schema]) => [name, fieldOf(path ? `${path}.${name}` : name, schema, components)]),
    );
    const inOrder = [...this.fields.values()].sort((one, other) => one.size - other.size);
    this.element = h("div", { class: "fields" }, inOrder.map((field) => field.element));
  }

  value({ isWhole = false } = {}) {
    const found = [...this.fields].map(([name, field]) => [name, field.value({ isWhole })]);
    const set = found.filter(([, value]) => value !== undefined);
    return set.length ? Object.fromEntries(set) : undefined;
  }

  /** Fill the fields with values, which count as unchanged from now on. */
  base(values) {
    for (const [name, field] of this.fields) field.base(values?.[name]);
  }

  /** Show which value each empty field will have. */
  hint(values) {
    for (const [name, field] of this.fields) field.hint(values?.[name]);
  }

  /** The field of a path, or of what it lies in; null if none of these is here. */
  find(parts) {
    const field = this.fields.get(parts[0]);
    return field ? field.find(parts.slice(1)) : null;
  }

  *all() {
    for (const field of this.fields.values()) yield* field.all();
  }
}

/** A part of the form that folds away. */
class Section extends ObjectField {
  size = 2;

  constructor(path, shape, components) {
    super(path, shape, components);
    const about = shape.description ? h("p", { class: "hint" }, prose(shape.description)) : null;
    this.element = h("details", { class: "card" }, h("summary", {}, h("strong", {}, path)), about, this.element);
  }
}

/** One value: a number, a text, a choice or a list of these. */
class Leaf {
  size = 0; // small fields stand before large ones

  constructor(path, shape) {
    this.shape = shape;
    this.input = inputOf(shape);
    const isTold = !shape.isNullable || shape.options || shape.description?.includes("null");
    const hint = [shape.description, isTold ? null : "Write `null` for none."].filter(Boolean).join(" ");
    this.element = labelled(path, this.input, { hint: hint ? prose(hint) : null });
    this.input.name = path;
    this.known = undefined;
    this.hint(shape.fallback ?? undefined);
  }

  value({ isWhole }) {
    const text = this.input.value.trim();
    if (text === UNSET) return undefined;
    return !isWhole && this.written(this.known) === text ? undefined : read(text, this.shape);
  }

  base(value) {
    this.known = value;
    this.input.value = this.written(value);
  }

  hint(value) {
    const text = this.written(value);
    if (this.input.tagName === "SELECT") this.input.options[0].textContent = text ? `as it is: ${text}` : "not set";
    else this.input.placeholder = text;
  }

  written(value) {
    if (value === undefined) return UNSET;
    if (value === null) return this.shape.isNullable ? "null" : UNSET;
    if (this.shape.kind === "list") return value.map(plain).join(this.shape.isLines ? "\n" : ", ");
    return this.shape.kind === "json" ? JSON.stringify(value) : String(value);
  }

  find() {
    return this;
  }

  refuse(sentence) {
    this.input.refuse(sentence);
  }

  *all() {
    yield this;
  }
}

/** One of several kinds of object, each with fields of its own; it is sent whole or not at all. */
class Choice {
  size = 1;

  constructor(path, shape, components) {
    this.path = path;
    this.shape = shape;
    this.components = components;
    this.kinds = Object.keys(shape.kinds);
    this.input = select([[UNSET, "not set"], ...this.kinds], UNSET, { name: path, onchange: () => this.choose() });
    this.place = h("div", {});
    const hint = shape.description ? prose(shape.description) : null;
    this.element = h("div", { class: "choice" }, labelled(path, this.input, { hint }), this.place);
    this.inner = null;
  }

  choose(values) {
    const kind = this.input.value;
    this.inner = kind === UNSET ? null : new ObjectField(this.path, this.shape.kinds[kind], this.components, { without: [this.shape.tag] });
    this.inner?.base(values);
    fill(this.place, this.inner?.element);
  }

  value({ isWhole }) {
    if (this.input.value === UNSET) return undefined;
    const value = { [this.shape.tag]: this.input.value, ...this.inner.value({ isWhole: true }) };
    return !isWhole && same(value, this.known) ? undefined : value;
  }

  base(value) {
    this.known = undefined;
    this.input.value = this.kinds.includes(value?.[this.shape.tag]) ? value[this.shape.tag] : UNSET;
    this.choose(value);
    this.known = this.value({ isWhole: true });
  }

  hint(value) {
    this.input.options[0].textContent = value ? `as it is: ${Object.values(value).filter(isShort).slice(0, 2).join(" ")}` : "not set";
  }

  find(parts) {
    return this.inner?.find(parts) ?? this;
  }

  refuse(sentence) {
    this.input.refuse(sentence);
  }

  *all() {
    yield this;
    if (this.inner) yield* this.inner.all();
  }
}

function fieldOf(path, schema, components) {
  const shape = shapeOf(schema, components);
  if (shape.kind === "object") return new Section(path, shape, components);
  return shape.kind === "choice" ? new Choice(path, shape, components) : new Leaf(path, shape);
}

function inputOf(shape) {
  if (shape.options) return select([[UNSET, "not set"], ...shape.options, ...(shape.isNullable ? ["null"] : [])], UNSET);
  if (shape.isLines || shape.kind === "json") return h("textarea", { rows: 2, spellcheck: "false" });
  const isNumber = shape.kind === "integer" || shape.kind === "number";
  return h("input", { type: "text", inputmode: isNumber ? "decimal" : null, autocomplete: "off", spellcheck: "false" });
}

function read(text, shape) {
  if (shape.isNullable && text === "null") return null;
  if (shape.kind === "integer" || shape.kind === "number") return numberIn(text);
  if (shape.kind === "boolean") return text === "true";
  if (shape.kind === "json") return jsonIn(text);
  if (shape.kind !== "list") return text;
  const parts = text.split(shape.isLines ? "\n" : ",").map((part) => part.trim());
  return parts.filter(Boolean).map((part) => (shape.isNumbers ? numberIn(part) : part));
}

function numberIn(text) {
  const number = Number(text);
  return Number.isFinite(number) && (Number.isSafeInteger(number) || !Number.isInteger(number)) ? number : text;
}

function jsonIn(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

const isShort = (value) => typeof value === "string" || typeof value === "number";

function same(one, other) {
  if (one === other) return true;
  if (typeof one !== "object" || typeof other !== "object" || !one || !other) return false;
  const names = new Set([...Object.keys(one), ...Object.keys(other)]);
  return [...names].every((name) => same(one[name], other[name]));
}
