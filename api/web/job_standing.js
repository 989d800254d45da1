// Where does a job stand? Cycle, tokens, speed, time left, and in one sentence why it waits or how it ended.

import { badge, bar, card, prose, stat } from "/ui/components.js";
import { fill, h, say } from "/ui/dom.js";
import { count, duration, figure, moment, percent } from "/ui/format.js";

const FINAL = new Set(["succeeded", "failed", "cancelled"]);
const BEGINS = { loading: 0.02, harvesting: 0.05, training: 0.2, attributing: 0.85, evaluating: 0.92, uploading: 0.97 };
const LASTS = { harvesting: 0.15, training: 0.65 };
// Where in a cycle each phase begins, and how much of it the two long ones take: rough shares, for the bar alone.

export const isFinal = (job) => FINAL.has(job.state);

/** The card of a job's standing; `show(job)` fills it anew where it stands. `adviceFor(job)` says what helps. */
export class Standing {
  constructor(adviceFor) {
    this.adviceFor = adviceFor;
    this.state = h("p", {});
    this.why = h("p", { class: "why" });
    this.advice = h("p", { class: "why small" });
    this.bar = bar("Of the whole job");
    this.stats = {
      cycle: stat("cycle"), phase: stat("phase"), tokens: stat("tokens of cycle"), speed: stat("tokens/s"),
      left: stat("time left"), loss: stat("training loss"), l0: stat("L0"), variance: stat("explained variance"),
    };
    this.times = h("p", { class: "small" });
    const boxes = h("div", { class: "stats" }, Object.values(this.stats));
    const heading = h("h2", { class: "unseen" }, "Where it stands");
    this.element = card(null, heading, this.state, this.why, this.advice, this.bar, boxes, this.times);
  }

  /** `last`: what is known of the last finished cycle, for when none runs. */
  show(job, last) {
    const { progress } = job;
    const latest = progress.latest ?? (progress.phase === null ? last : null) ?? {};
    if (this.word !== job.state) fill(this.state, badge((this.word = job.state)));
    say(this.why, whyOf(job));
    this.advise(this.adviceFor(job));
    this.bar.set(shareDone(job));
    const { stats } = this;
    stats.cycle.set(progress.cycle_index === null ? `${progress.n_cycles_done} of ${progress.n_cycles} done` : `${progress.cycle_index + 1} of ${progress.n_cycles}`);
    stats.phase.set(progress.phase ?? (isFinal(job) ? "ended" : "waiting"));
    stats.tokens.set(latest.n_tokens === undefined ? null : `${count(latest.n_tokens)} / ${count(latest.n_tokens_total)}`);
    stats.speed.set(count(latest.tokens_per_s));
    stats.left.set(isFinal(job) ? "none" : duration(progress.time_left_s));
    stats.loss.set(figure(latest.loss));
    stats.l0.set(figure(latest.l0));
    stats.variance.set(percent(latest.explained_variance));
    say(this.times, timesOf(job));
  }

  advise(sentence) {
    if (sentence === this.advised) return;
    this.advised = sentence;
    fill(this.advice, sentence && prose(sentence));
  }
}

/** The figures of the last finished cycle, named as a trainer's line names them; null before the first. */
export function lastFigures(cycles, lastLoss) {
  const last = cycles.findLast(({ state }) => state === "succeeded");
  if (!last?.metrics) return null;
  const { n_tokens, l0, explained_variance, phase_seconds } = last.metrics;
  const tokens_per_s = phase_seconds?.training ? n_tokens / phase_seconds.training : undefined;
  return { n_tokens, n_tokens_total: n_tokens, l0, explained_variance, tokens_per_s, loss: lastLoss(last.index) };
}

function whyOf(job) {
  if (job.error?.message && !job.state_reason) return job.error.message;
  if (job.state_reason) return job.state_reason;
  if (job.state === "succeeded") return "Every cycle is done.";
  if (job.state === "cancelled") return "It was cancelled.";
  return job.state === "running" ? "It runs." : "";
}

function shareDone({ state, progress }) {
  if (state === "succeeded") return 1;
  const { latest, phase, n_cycles, n_cycles_done } = progress;
  const ofCycle = (BEGINS[phase] ?? 0) + (LASTS[phase] ?? 0) * shareOfPhase(phase, latest);
  return n_cycles ? (n_cycles_done + ofCycle) / n_cycles : 0;
}

/** How much of a phase is done, by its trainer's last line, which may still be the phase's before. */
function shareOfPhase(phase, latest) {
  if (phase === "training" && latest?.n_steps > 0) return latest.step / latest.n_steps;
  return phase === "harvesting" && latest?.n_tokens_total > 0 ? latest.n_tokens / latest.n_tokens_total : 0;
}

function timesOf(job) {
  const parts = [`Submitted ${moment(job.created_at)}`];
  if (job.started_at) parts.push(`begun ${moment(job.started_at)}`);
  if (job.finished_at) parts.push(`ended ${moment(job.finished_at)}`);
  if (job.run > 1) parts.push(`run ${job.run}`);
  if (job.expires_at) parts.push(`deleted after ${moment(job.expires_at)}`);
  return `${parts.join(" · ")}.`;
}
