// How is a figure of the API shown? As an image of the page's theme, with links that save it and its data.

import { fill, h } from "/ui/dom.js";
import { button, failure, loading } from "/ui/components.js";
import { blob, withQuery } from "/ui/service.js";
import { onTheme, themeInUse } from "/ui/themes.js";

/** A figure: `path` without its ending (`/jobs/ID/figures/origins`), `alt` for those who cannot see it. The box
 * has `again(query?)`, which draws it anew; with `waiting` it says that, as high as it will be, until then. */
export function figureBox(path, { title, alt, query = {}, signal, height = "22rem", waiting = null }) {
  const scrolls = { tabindex: "0", role: "region", "aria-label": title };
  const place = h("div", { class: "drawing", ...scrolls, style: { "min-height": height } }, loading(waiting ?? "Drawing …", height));
  const save = ["svg", "png", "csv"].map((kind) => button(kind.toUpperCase(), () => download(kind), { kind: "quiet", disabled: waiting !== null }));
  const box = h(
    "figure",
    { class: "figure" },
    h("figcaption", {}, h("span", {}, title), h("span", { class: "tools" }, "Save as", ...save)),
    place,
  );
  let wanted = query;
  let isWaiting = waiting !== null;
  let url = null;
  let turn = 0;
  const address = (kind) => withQuery(`${path}.${kind}`, { ...wanted, theme: kind === "csv" ? null : themeInUse() });
  async function download(kind) {
    try {
      saveBlob(await blob(address(kind), { signal }), `${path.split("/").filter(Boolean).slice(-3).join("-")}.${kind}`);
    } catch (error) {
      if (!signal.aborted) fill(place, failure(error));
    }
  }
  box.again = async (next = wanted) => {
    wanted = next;
    isWaiting = false;
    for (const one of save) one.disabled = false;
    const mine = (turn += 1);
    try {
      const image = await blob(address("svg"), { signal });
      if (mine !== turn) return; // another one was asked for meanwhile
      if (url) URL.revokeObjectURL(url);
      url = URL.createObjectURL(image);
      fill(place, h("img", { src: url, alt }));
    } catch (error) {
      if (!signal.aborted && mine === turn) fill(place, failure(error));
    }
  };
  signal.addEventListener("abort", () => url && URL.revokeObjectURL(url), { once: true });
  onTheme(() => isWaiting || box.again(), signal);
  if (!isWaiting) box.again();
  return box;
}

/** Let the browser save a file. */
export function saveBlob(content, name) {
  const url = URL.createObjectURL(content);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
