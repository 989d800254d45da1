// Runs in the head: puts the chosen theme on the page before it is drawn, and tells MkDocs's search where it is.
"use strict";

const STORED = "dmsae-theme"; // the web page's too, so that a choice holds in both
const ORDER = ["auto", "light", "dark"];
var base_url = document.currentScript.dataset.base; // a `var`: `search/main.js` reads it from the window

function stored() {
  try {
    return localStorage.getItem(STORED) ?? "auto";
  } catch {
    return document.documentElement.dataset.theme ?? "auto"; // storage is blocked
  }
}

function put(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  if (button) button.textContent = `Theme: ${theme}`;
}

function turn() {
  const theme = ORDER[(ORDER.indexOf(stored()) + 1) % ORDER.length];
  put(theme);
  try {
    if (theme === "auto") localStorage.removeItem(STORED);
    else localStorage.setItem(STORED, theme);
  } catch {
    // The choice lasts as long as the page.
  }
}

function focusSearch(event) {
  const isTyping = event.target.closest("input, textarea, select");
  if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  document.getElementById("mkdocs-search-query").focus();
}

// What was typed before the index was there is looked for once it is; `search/main.js` has both of these names.
function searchOnceReady() {
  window.searchWorker.addEventListener("message", (event) => {
    if (event.data.allowSearch) window.doSearch();
  });
}

put(stored());
document.addEventListener("DOMContentLoaded", () => {
  put(stored());
  searchOnceReady();
  document.getElementById("theme").addEventListener("click", turn);
  document.querySelector("form[role=search]").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", focusSearch);
  if (matchMedia("(max-width: 60rem)").matches) document.querySelector(".pages details").open = false;
});
