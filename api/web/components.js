// Which pieces are pages made of? State badges, cards, tables, tabs, dialogs, and what stands where nothing does.

import { fill, h, say } from "/ui/dom.js";
import { DASH, figure } from "/ui/format.js";
import { Refusal } from "/ui/service.js";

const MARKS = {
  queued: "○", waiting: "○", running: "▶", cancelling: "◌", succeeded: "✓", failed: "✗", cancelled: "–", skipped: "–",
};

/** The state of a job or cycle: a word, a mark and a colour, so that none of them is needed alone. */
export function badge(state) {
  return h("span", { class: `badge ${state}` }, h("span", { "aria-hidden": "true" }, MARKS[state] ?? "•"), ` ${state}`);
}

/** A titled part of a page. */
export function card(title, ...children) {
  return h("section", { class: "card" }, title ? h("h2", {}, title) : null, ...children);
}

/** The head of a page: its name, and what can be done there. */
export function pageHead(title, ...tools) {
  document.title = `${title} · DMSAE`;
  return h("div", { class: "head" }, h("h1", { tabindex: "-1" }, title), h("div", { class: "tools" }, ...tools));
}

export function button(text, onclick, { kind = "", ...attributes } = {}) {
  return h("button", { type: "button", class: kind, onclick, ...attributes }, text);
}

/** A table in a box that scrolls sideways on its own. `columns`: [{name, title?, is_number?, show(row)}], where
 * `show` gives a text or a node. `caption` says what it is to those who cannot see it. */
export function table(columns, rows, { caption, rowAttributes = () => ({}) } = {}) {
  const head = columns.map((column) => h("th", { scope: "col", class: numeric(column), title: column.title }, column.name));
  const body = rows.map((row) =>
    h("tr", rowAttributes(row), columns.map((column) => h("td", { class: numeric(column) }, column.show(row)))),
  );
  return scrolling(
    caption,
    h("table", {}, h("caption", { class: "unseen" }, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)),
  );
}

/** A box that scrolls sideways, by keyboard too. */
export function scrolling(label, ...children) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, ...children);
}

/** Names and values in two columns. */
export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined);
  return h("dl", { class: "facts" }, shown.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

/** Tabs over panels: [{name, make(), isRemade?}], each made when it is first looked at, or each time. Arrow keys
 * move between them. */
export function tabs(label, panels) {
  const box = h("div", { class: "panel", role: "tabpanel", tabindex: "0" });
  const made = new Map();
  const buttons = panels.map(({ name }, index) =>
    h("button", { type: "button", role: "tab", onclick: () => choose(index) }, name),
  );
  function choose(index) {
    if (panels[index].isRemade || !made.has(index)) made.set(index, panels[index].make());
    buttons.forEach((one, i) => {
      one.setAttribute("aria-selected", String(i === index));
      one.tabIndex = i === index ? 0 : -1;
    });
    box.setAttribute("aria-label", panels[index].name);
    fill(box, made.get(index));
  }
  function move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length;
    choose(next);
    buttons[next].focus();
  }
  choose(0);
  return h("div", { class: "tabs" }, h("div", { role: "tablist", "aria-label": label, onkeydown: move }, buttons), box);
}

/** What stands where there is nothing to show. */
export function empty(text, ...more) {
  return h("div", { class: "empty" }, h("p", {}, text), ...more);
}

/** A failure as people read it: the API's sentence, and which fields it names. */
export function failure(error) {
  const isOurs = error instanceof Refusal;
  const named = isOurs && error.errors.length > 1 ? error.errors : [];
  return h(
    "div",
    { class: "failure", role: "alert" },
    h("p", {}, isOurs ? error.message : `Something in this page went wrong: ${error.message}`),
    named.length ? h("ul", {}, named.map((one) => h("li", {}, h("code", {}, one.param), `: ${one.rule}`))) : null,
    isOurs && error.problem.request_id ? h("p", { class: "small" }, `Request ${error.problem.request_id}`) : null,
  );
}

/** Something that is on its way; its box keeps the height that it will have. */
export function loading(text = "Loading …", height = "") {
  return h("p", { class: "loading", style: height ? { "min-height": height } : {} }, text);
}

/** How much of something is done: 0 to 1, or null while nobody knows. */
export function bar(label) {
  const inner = h("span", {});
  const outer = h("div", { class: "progress", role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 }, inner);
  outer.set = (share) => {
    const value = Math.max(0, Math.min(1, share ?? 0));
    inner.style.width = `${(value * 100).toFixed(1)}%`;
    outer.setAttribute("aria-valuenow", String(Math.round(value * 100)));
  };
  outer.set(0);
  return outer;
}

/** Ask before something is done; true if it is to be. */
export function confirmed(title, text, yes) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog",
      { "aria-labelledby": "asked", onclose: () => (dialog.remove(), resolve(dialog.returnValue === "yes")) },
      h("h2", { id: "asked" }, title),
      h("p", {}, text),
      h("div", { class: "tools" }, button("No", () => dialog.close("no")), button(yes, () => dialog.close("yes"), { kind: "danger" })),
    );
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Show a dialog that only tells something. */
export function tell(title, ...children) {
  const dialog = h(
    "dialog",
    { "aria-labelledby": "told", onclose: () => dialog.remove() },
    h("h2", { id: "told" }, title),
    ...children,
    h("div", { class: "tools" }, button("Close", () => dialog.close())),
  );
  document.body.append(dialog);
  dialog.showModal();
}

/** A label with its field, a hint and a place for what is wrong with it. `field.refuse(text)` puts text there. */
export function labelled(text, field, { hint } = {}) {
  const id = (field.id ||= `field-${(labelled.n = (labelled.n ?? 0) + 1)}`);
  const wrong = h("span", { class: "wrong", id: `${id}-wrong` });
  const help = hint ? h("span", { class: "hint", id: `${id}-hint` }, hint) : null;
  field.setAttribute("aria-describedby", hint ? `${id}-hint ${id}-wrong` : `${id}-wrong`);
  field.refuse = (sentence) => {
    say(wrong, sentence);
    if (sentence) field.setAttribute("aria-invalid", "true");
    else field.removeAttribute("aria-invalid");
  };
  return h("div", { class: "field" }, h("label", { for: id }, text), field, help, wrong);
}

/** A sentence whose `words in backticks` are code, and whose METHOD 4 is a link to the method's page. */
export function prose(text) {
  return text.split(/(`[^`]*`|METHOD \d+)/).map((part, index) => {
    if (index % 2 === 0) return part;
    if (part.startsWith("`")) return h("code", {}, part.slice(1, -1));
    return h("a", { href: "/docs/method/" }, `the method, part ${part.split(" ")[1]}`);
  });
}

/** A choice: `options` are texts, or [value, text]. */
export function select(options, value, attributes = {}) {
  const field = h("select", attributes, options.map((one) => {
    const [worth, text] = Array.isArray(one) ? one : [one, one];
    return h("option", { value: worth, selected: worth === value }, text);
  }));
  return field;
}

/** A big number with a word below it. */
export function stat(word) {
  const value = h("span", { class: "value" }, DASH);
  const box = h("div", { class: "stat" }, value, h("span", { class: "word" }, word));
  box.set = (shown) => say(value, typeof shown === "number" ? figure(shown) : (shown ?? DASH));
  return box;
}

const numeric = (column) => (column.is_number ? "number" : null);
