// Puts the chosen theme on the page before anything is drawn. No module: modules run too late for that.
(function () {
  try {
    const chosen = localStorage.getItem("dmsae-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // Storage is blocked: the system's theme it is.
  }
})();
