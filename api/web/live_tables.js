// How does a table change while it is looked at? Its rows stay the same elements, so that focus and places stay
// where they are, and only what is another text now is set anew.

import { scrolling } from "/ui/components.js";
import { h, say } from "/ui/dom.js";

/** A table whose `show(items)` sets its rows; `key(item)` tells rows apart.
 *
 * Columns: `{name, title?, is_number?}` with `text(item)`, or with `make(item)`, which gives a node once for each
 * row (and its `update(item)`, if it has one, is called with what is new), and with `by(item)` where rows may be
 * sorted by it: then `onsort({name, isDown})` is called, and `sort` says how they are at first. Where columns have
 * a `width`, nothing in the table moves whatever it shows: rows keep one height, and what is longer is cut. Columns
 * that are `wide` are left out on a phone. */
export function liveTable(columns, { caption, key, sort = null, onsort = null }) {
  const isFixed = columns.some((column) => column.width);
  const heads = columns.map((column) => head(column, choose));
  const body = h("tbody", {});
  const rows = new Map();
  const box = scrolling(
    caption,
    h("table", { class: isFixed ? "fixed" : null }, h("caption", { class: "unseen" }, caption), h("thead", {}, h("tr", {}, heads)), body),
  );
  let sorted = sort;

  function choose(column) {
    const isSame = sorted?.name === column.name;
    sorted = { name: column.name, isDown: isSame ? !sorted.isDown : Boolean(column.is_number) };
    markSorted();
    onsort(sorted);
  }
  function markSorted() {
    heads.forEach((cell, i) => {
      if (!columns[i].by) return;
      const isIt = sorted?.name === columns[i].name;
      cell.setAttribute("aria-sort", isIt ? (sorted.isDown ? "descending" : "ascending") : "none");
      say(cell.querySelector(".arrow"), isIt ? (sorted.isDown ? "▼" : "▲") : "");
    });
  }
  box.show = (items) => {
    const wanted = items.map((item) => {
      const row = rows.get(key(item)) ?? makeRow(columns, item);
      row.update(item);
      return [key(item), row];
    });
    const kept = new Set(wanted.map(([, row]) => row.element));
    for (const element of [...body.children]) if (!kept.has(element)) element.remove();
    wanted.forEach(([, { element }], i) => {
      if (body.children[i] !== element) body.insertBefore(element, body.children[i] ?? null);
    });
    rows.clear();
    for (const [id, row] of wanted) rows.set(id, row);
  };
  markSorted();
  return box;
}

/** Sort rows by a column: what is not known comes last either way. */
export function sortRows(items, columns, { name, isDown }) {
  const column = columns.find((one) => one.name === name);
  const isUnknown = (value) => value === null || value === undefined;
  return [...items].sort((a, b) => {
    const [x, y] = [column.by(a), column.by(b)];
    if (isUnknown(x) || isUnknown(y)) return isUnknown(x) - isUnknown(y);
    const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return isDown ? -order : order;
  });
}

function head(column, choose) {
  const inner = column.by
    ? h("button", { type: "button", onclick: () => choose(column) }, column.name, " ", h("span", { class: "arrow", "aria-hidden": "true" }))
    : column.name;
  const style = column.width ? { width: column.width } : {};
  return h("th", { scope: "col", class: classOf(column), title: column.title, style }, inner);
}

function makeRow(columns, item) {
  const cells = columns.map((column) => {
    const node = column.make ? column.make(item) : h("div", { class: "text" });
    return { cell: h("td", { class: classOf(column) }, node), node, column };
  });
  return {
    element: h("tr", {}, cells.map(({ cell }) => cell)),
    update: (next) => {
      for (const { node, column } of cells) {
        if (column.make) node.update?.(next);
        else say(node, column.text(next));
      }
    },
  };
}

const classOf = (column) => [column.is_number && "number", column.wide && "wide"].filter(Boolean).join(" ") || null;
