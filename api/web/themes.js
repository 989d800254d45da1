// Which theme is shown, and who must know when it changes? (`theme.js` puts the chosen one there at first.)

const STORED = "dmsae-theme";
const ORDER = ["auto", "light", "dark"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const changes = new EventTarget();

export const themeChosen = () => document.documentElement.dataset.theme ?? "auto";

/** `light` or `dark`, whichever is seen. */
export function themeInUse() {
  const chosen = themeChosen();
  return chosen === "auto" ? (dark.matches ? "dark" : "light") : chosen;
}

/** Choose the next one of auto, light, dark. */
export function nextTheme() {
  const chosen = ORDER[(ORDER.indexOf(themeChosen()) + 1) % ORDER.length];
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  try {
    if (chosen === "auto") localStorage.removeItem(STORED);
    else localStorage.setItem(STORED, chosen);
  } catch {
    // Storage is blocked: the choice lasts as long as the page.
  }
  changes.dispatchEvent(new Event("theme"));
}

/** Be told when another theme is seen, until `signal` fires. */
export function onTheme(listener, signal) {
  changes.addEventListener("theme", listener, { signal });
  dark.addEventListener("change", listener, { signal });
}
