// How is a share of one drawn beside its figure? As a bar behind which nothing hides: the figure is told as well.

import { h, say } from "/ui/dom.js";

/** A bar with its text; `set(share, text)` with a share from 0 to 1, or null where it is not known. */
export function shareBar() {
  const inner = h("span", {});
  const text = h("span", { class: "told" });
  const bar = h("span", { class: "share-bar" }, h("span", { class: "track", "aria-hidden": "true" }, inner), text);
  bar.set = (share, told) => {
    inner.style.width = `${Math.max(0, Math.min(1, share ?? 0)) * 100}%`;
    say(text, told);
  };
  return bar;
}
