// How do live curves look? Lines over a shared axis in a box of fixed size, so that nothing moves as they grow.

import { fill, h, svg } from "/ui/dom.js";
import { count, figure } from "/ui/format.js";

const WIDTH = 380;
const HEIGHT = 200;
const MARGIN = { left: 48, right: 8, top: 10, bottom: 36 };
const DASHES = ["none", "6 3", "2 3", "9 3 2 3"];
const COLOURS = 8;

/** How the n-th line looks: a colour, and a dash where colours come again. */
export const lineStyle = (n) => ({
  stroke: `var(--series-${n % COLOURS})`,
  "stroke-dasharray": DASHES[Math.floor(n / COLOURS) % DASHES.length],
});

/** A chart of lines. `draw(series)`: [{name, style, x: [...], y: [...]}]; unknown values are gaps. */
export function lineChart(title, xName) {
  const drawing = svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
  const element = h("figure", { class: "figure" }, h("figcaption", {}, title), drawing);
  return { element, draw: (series) => draw(drawing, series, title, xName) };
}

function draw(drawing, series, title, xName) {
  const xs = range(series.flatMap((one) => one.x));
  const ys = range(series.flatMap((one) => one.y));
  drawing.setAttribute("aria-label", told(title, series));
  if (!xs || !ys) return void fill(drawing, note("No step was recorded yet."));
  const place = {
    x: scale(xs, MARGIN.left, WIDTH - MARGIN.right),
    y: scale(padded(ys), HEIGHT - MARGIN.bottom, MARGIN.top),
  };
  const lines = series.map((one) => svg("path", { d: path(one, place), ...one.style }, svg("title", {}, one.name)));
  fill(drawing, axes(xs, padded(ys), place, xName), lines);
}

/** The last value of each line, for those who cannot see it. */
function told(title, series) {
  const lasts = series.map((one) => `${one.name} ${figure(one.y.findLast((value) => value !== null))}`);
  return lasts.length ? `${title}; last: ${lasts.join(", ")}` : `${title}: nothing yet`;
}

function path({ x, y }, place) {
  let isDrawing = false;
  return x
    .map((at, index) => {
      if (y[index] === null || y[index] === undefined) return (isDrawing = false) || "";
      const command = isDrawing ? "L" : "M";
      isDrawing = true;
      return `${command}${place.x(at).toFixed(1)} ${place.y(y[index]).toFixed(1)}`;
    })
    .join("");
}

function axes(xs, ys, place, xName) {
  const bottom = HEIGHT - MARGIN.bottom;
  const rows = ticks(ys, 4).map((value) => [
    svg("line", { class: "axis", x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: place.y(value), y2: place.y(value) }),
    svg("text", { x: MARGIN.left - 6, y: place.y(value) + 4, "text-anchor": "end" }, figure(value, 3)),
  ]);
  const columns = ticks(xs, 4).map((value) =>
    svg("text", { x: place.x(value), y: bottom + 14, "text-anchor": "middle" }, count(value)),
  );
  const name = svg("text", { x: WIDTH - MARGIN.right, y: HEIGHT - 4, "text-anchor": "end" }, xName);
  return [rows, columns, name];
}

const note = (text) => svg("text", { x: WIDTH / 2, y: HEIGHT / 2, "text-anchor": "middle" }, text);

function range(values) {
  const known = values.filter((value) => Number.isFinite(value));
  if (!known.length) return null;
  return known.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

function padded([low, high]) {
  const room = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 1;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

function scale([low, high], from, to) {
  const span = high > low ? high - low : 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

/** Round numbers within a range, about `n` of them. */
function ticks([low, high], n) {
  const raw = (high - low || Math.abs(high) || 1) / n;
  const magnitude = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * magnitude).find((candidate) => candidate >= raw);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) {
    found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  }
  return found;
}
