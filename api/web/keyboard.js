// What do keys do on every page? A filter is marked by `data-filter`, what `j` and `k` go through by `data-row`.

export const keyNames = [
  ["/", "Go to the filter"],
  ["j", "Next of the list"],
  ["k", "The one before"],
  ["Enter", "Open it"],
  ["?", "Show these keys"],
  ["Esc", "Leave a field, close a dialog"],
];

/** Listen to keys until the window is closed. */
export function listenToKeys({ showKeys }) {
  const doing = { "/": focusFilter, j: () => move(1), k: () => move(-1), "?": showKeys };
  addEventListener("keydown", (event) => {
    const at = document.activeElement;
    const isTyping = at?.matches("input:not([type=checkbox]), textarea, select, [contenteditable]");
    if (event.key === "Escape" && isTyping) return leave(event, at);
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (!(event.key in doing)) return;
    event.preventDefault();
    doing[event.key]();
  });
}

/** Leave a field as it is: browsers would empty a search field. */
function leave(event, field) {
  event.preventDefault();
  field.blur();
}

function focusFilter() {
  document.querySelector("[data-filter]")?.focus();
}

function move(step) {
  const rows = [...document.querySelectorAll("[data-row]")].filter((row) => row.offsetParent !== null);
  if (!rows.length) return;
  const at = rows.indexOf(document.activeElement);
  const next = at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.max(0, Math.min(rows.length - 1, at + step));
  rows[next].focus();
}
