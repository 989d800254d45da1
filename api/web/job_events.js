// What happened to a job? Its events in order, the newest at the end of a box that follows them.

import { figure, when } from "/ui/format.js";
import { h } from "/ui/dom.js";
import { get } from "/ui/service.js";

const PAGE = 500;
const NEAR_END = 40;

/** The list of events; `show()` asks for those that are new. */
export class Events {
  constructor(id, signal) {
    this.id = id;
    this.signal = signal;
    this.after = 0;
    this.isFollowing = true;
    this.list = h("ol", { class: "events" });
    this.element = h("div", { class: "log", tabindex: "0", role: "log", "aria-label": "Events" }, this.list);
    this.element.addEventListener("scroll", ({ target }) => {
      this.isFollowing = target.scrollHeight - target.scrollTop - target.clientHeight < NEAR_END;
    });
  }

  /** Go to the newest one, unless somebody reads older ones. */
  follow() {
    if (this.isFollowing) this.element.scrollTop = this.element.scrollHeight;
  }

  async show() {
    for (;;) {
      const found = await get(`/jobs/${this.id}/events?after=${this.after}&limit=${PAGE}`, { signal: this.signal });
      if (!found.items.length) return;
      this.list.append(...found.items.map(entry));
      this.after = found.after;
      this.follow();
      if (found.items.length < PAGE) return;
    }
  }
}

function entry(event) {
  const place = event.cycle_index === null ? "" : `cycle ${figure(event.cycle_index)}`;
  return h(
    "li",
    {},
    h("time", { datetime: event.created_at, title: event.created_at }, when(event.created_at)),
    h("code", {}, event.kind),
    h("span", {}, event.message, place ? h("span", { class: "small" }, ` (${place})`) : null),
  );
}
