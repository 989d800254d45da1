"""How soon is the list of jobs on the screen, how soon does it answer, and how much did the browser receive?

`N_JOBS` jobs in services of their own, one real process of the API, and this machine's Chromium, each time
with nothing cached. Rows, medians of `N_LOADS`:

- `pages.first_paint`: from asking for the page to its first contentful paint, in ms;
- `pages.first_jobs`: until the first jobs stand in the list, in ms;
- `pages.sent`: bytes received until then, in kB;
- `pages.key`: what one `j` takes, which goes to the next job, in ms;
- `pages.filtered`: from the last letter in the filter until the one job is found, in ms (250 ms of it wait
  for another letter).

Each says whether its bar `holds`; without a Chromium there is one row that says so.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from bench.streams import started

BARS = {
    "first_paint": (1000.0, "ms"), "first_jobs": (1000.0, "ms"), "sent": (500.0, "kB"),
    "key": (16.0, "ms"), "filtered": (1000.0, "ms"),
}  # fmt: skip
N_LOADS = 7
ROWS_SEEN = """
new MutationObserver((_, observer) => {
  if (!document.querySelector("[data-row]")?.textContent) return;
  window.jobsSeenAt = performance.now();
  observer.disconnect();
}).observe(document, {childList: true, subtree: true, characterData: true});
"""
PRESS = """() => {
  const before = performance.now();
  for (let n = 0; n < 40; n += 1) {
    dispatchEvent(new KeyboardEvent("keydown", {key: "j"}));
    document.activeElement.getBoundingClientRect();
  }
  return (performance.now() - before) / 40;
}"""
FILTER = """() => new Promise((resolve) => {
  const before = performance.now();
  new MutationObserver((_, observer) => {
    if (document.querySelector("[data-row]")?.textContent !== "planted 9876") return;
    observer.disconnect();
    resolve(performance.now() - before);
  }).observe(document, {childList: true, subtree: true, characterData: true});
  const field = document.querySelector("[data-filter]");
  field.value = "planted 9876";
  field.dispatchEvent(new Event("input", {bubbles: true}));
})"""
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


class Load(NamedTuple):
    """One load of the list of jobs."""

    first_paint: float
    first_jobs: float
    sent: float
    key: float
    filtered: float


def page_rows(is_wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """Give all rows, from the same loads."""
    if not is_wanted("pages"):
        return
    from tests.browser.chromium import MISSING, find_chromium

    chromium = find_chromium()
    if chromium is None:
        yield {"name": "pages", "value": None, "skipped": MISSING}
        return
    with tempfile.TemporaryDirectory(prefix="dmsae-bench-") as folder, ExitStack() as stack:
        loads = load_jobs(Path(folder), stack, chromium)
    for name, (bar, unit) in BARS.items():
        values = [getattr(load, name) for load in loads]
        value = statistics.median(values)
        yield {
            "name": f"pages.{name}",
            "value": round(value, 1),
            "unit": unit,
            "against": bar,
            "ratio": round(value / bar, 3),
            "spread": [round(min(values), 1), round(max(values), 1)],
            "holds": value < bar,
        }


def load_jobs(folder: Path, stack: ExitStack, chromium: str) -> list[Load]:
    """Plant the jobs and look at them again and again."""
    from playwright.sync_api import sync_playwright

    from tests.browser.lab import plant_jobs

    site = started(folder, stack)
    plant_jobs(site.database_url)
    playwright = stack.enter_context(sync_playwright())
    browser = playwright.chromium.launch(executable_path=chromium)
    stack.callback(browser.close)
    return [load_once(browser, site.url) for _ in range(N_LOADS)]


def load_once(browser: Any, url: str) -> Load:
    """Look at the list of jobs in a context that has seen nothing before."""
    from tests.browser.tab import opened

    with opened(browser, url) as tab:
        tab.page.add_init_script(ROWS_SEEN)
        tab.open("#/jobs")
        tab.page.get_by_role("link", name="planted 1", exact=True).wait_for()
        first_paint, first_jobs = tab.page.evaluate(f"[{FIRST_PAINT}, window.jobsSeenAt]")
        sent = tab.n_bytes / 1000
        return Load(first_paint, first_jobs, sent, tab.page.evaluate(PRESS), tab.page.evaluate(FILTER))
