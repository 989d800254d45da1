// What can be done about a job? Cancel, retry, clone: each asks first, and says why where the API refuses.

import { button, confirmed, failure } from "/ui/components.js";
import { fill, h } from "/ui/dom.js";
import { isFinal } from "/ui/job_standing.js";
import { send } from "/ui/service.js";

/** The buttons of a job and the place below for what the API says; `show(job)` offers what its state allows. */
export class Actions {
  constructor(id, signal) {
    this.id = id;
    this.signal = signal;
    this.refusal = h("div", {});
    this.cancel = button("Cancel", () => this.doAfter("cancel", CANCEL), { disabled: true });
    this.retry = button("Retry", () => this.doAfter("retry", RETRY), { disabled: true });
    this.clone = h("a", { class: "button", href: `#/submit?clone=${id}` }, "Clone");
    this.lineage = h("a", { class: "button primary", href: `#/jobs/${id}/lineage` }, "Lineage");
    this.compare = h("a", { class: "button", href: `#/compare?jobs=${id}` }, "Compare");
    this.buttons = [this.lineage, this.compare, this.clone, this.retry, this.cancel];
  }

  show(job) {
    this.cancel.disabled = isFinal(job) || job.state === "cancelling" || this.isBusy;
    this.retry.disabled = job.state !== "failed" || this.isBusy;
    for (const link of [this.clone, this.lineage, this.compare]) link.hidden = job.kind === "probe";
  }

  async doAfter(what, [title, text, yes]) {
    fill(this.refusal);
    if (!(await confirmed(title, text, yes))) return;
    this.isBusy = this.cancel.disabled = this.retry.disabled = true;
    try {
      const job = await send("POST", `/jobs/${this.id}/${what}`, undefined, { signal: this.signal });
      this.isBusy = false;
      this.show(job);
    } catch (error) {
      this.isBusy = false;
      if (this.signal.aborted) return;
      this[what].disabled = false;
      fill(this.refusal, failure(error));
    }
  }
}

const CANCEL = ["End this job?", "Cycles that have finished stay. The one that runs is stopped, and what it did is lost.", "Cancel the job"];
const RETRY = ["Run it again?", "It goes on from the cycle that failed; finished cycles are kept.", "Retry the job"];
