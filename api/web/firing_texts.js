// How is text shown at which a latent fires? Its tokens, shaded and underlined the more, the stronger it fires.
// Nothing is markup: tokens become text nodes, whatever they hold.

import { h } from "/ui/dom.js";
import { DASH, figure } from "/ui/format.js";

const LEVELS = 8;
const LINE_ENDS = { "\n": "↵", "\r": "␍", "\t": "⇥" };

/** Tokens with their activations (null where none counts); `peak` is the token that is told of. */
export function firingText(tokens, activations, { max, peak = null }) {
  const parts = [];
  let quiet = "";
  tokens.forEach((token, i) => {
    const value = activations[i];
    const text = visible(token);
    if (!(value > 0)) return void (quiet += text);
    if (quiet) parts.push(quiet);
    quiet = "";
    parts.push(firing(text, value, { level: levelOf(value, max), isPeak: i === peak }));
  });
  return h("span", { class: "firing-text", translate: "no", dir: "auto" }, parts, quiet || null);
}

/** What the shades mean, as text too. */
export function shades(max) {
  const steps = [1, 3, 5, 8].map((level) => firing(figure((max * level) / LEVELS, 3), (max * level) / LEVELS, { level }));
  return h("p", { class: "small shades" }, "Shade and underline tell the activation: ", steps.flatMap((step) => [step, " "]));
}

/** Some texts of a latent, a line each: what it is, the text, and where it is strongest. */
export function snippetList(snippets, max) {
  return h("ul", { class: "snippets" }, snippets.map(({ kind, tokens, activations, peak }) =>
    h(
      "li",
      {},
      h("span", { class: `tag ${kind}` }, kind),
      " ",
      firingText(tokens, activations, { max, peak }),
      h("span", { class: "small" }, ` ${figure(activations[peak] ?? null, 3)} at “${visible(tokens[peak] ?? DASH).trim()}”`),
    ),
  ));
}

function firing(text, value, { level, isPeak = false }) {
  return h("mark", { class: isPeak ? "fires peak" : "fires", title: `activation ${figure(value, 3)}`, style: { "--level": String(level / LEVELS) } }, text);
}

/** Whitespace that cannot be seen gets a sign; everything else stays as it is. */
export function visible(token) {
  return token.replace(/[\n\r\t]/g, (end) => LINE_ENDS[end]);
}

const levelOf = (value, max) => (max > 0 ? Math.max(1, Math.min(LEVELS, Math.ceil((value / max) * LEVELS))) : 1);
