"""One page of the browser, watched for what no page may ever do, whatever the test is about."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from playwright.sync_api import (
    Browser,
    BrowserContext,
    CDPSession,
    ConsoleMessage,
    Page,
    Request,
    ViewportSize,
    expect,
)

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
PATIENCE_MS = 30_000
"""How long an element may take to appear: another process may be training beside the browser."""
PHONE: ViewportSize = {"width": 360, "height": 740}
DESK: ViewportSize = {"width": 1280, "height": 800}
WATCH = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries().filter((entry) => !entry.hadRecentInput)) {
    const nodes = entry.sources.map(({node}) => node?.outerHTML?.slice(0, 200) ?? "a node that is gone");
    window.shifts.push({value: entry.value, nodes});
  }
}).observe({type: "layout-shift", buffered: true});
"""
"""Runs before any script of the page: keeps the layout shifts that no input caused."""

Theme = Literal["light", "dark"]


class Tab:
    """A page, and what was seen of it: hosts asked, bytes received, errors, layout shifts."""

    def __init__(self, context: BrowserContext, base_url: str) -> None:
        self.base_url = base_url
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.add_init_script(WATCH)
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        self.n_bytes = 0
        self.page.on("request", self._note_host)
        self.page.on("console", self._note_console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self._protocol: CDPSession = context.new_cdp_session(self.page)
        self._protocol.on("Network.loadingFinished", self._count_bytes)
        self._protocol.send("Network.enable")

    def open(self, place: str) -> Page:
        """Load the page anew, at a place of its own, such as `#/jobs`."""
        self.n_bytes = 0
        self.page.goto("about:blank")
        self.page.goto(f"{self.base_url}/{place}")
        return self.page

    def show(self, place: str, heading: str) -> Page:
        """Load it anew and wait until it is all there, under the heading that it must have."""
        self.open(place)
        main = self.page.get_by_role("main")
        expect(main.get_by_role("heading", level=1)).to_contain_text(heading)
        expect(main.locator(".loading")).to_have_count(0)
        return self.page

    def see(self, theme: Theme) -> None:
        """Ask for light or dark, as the system's setting would."""
        self.page.emulate_media(color_scheme=theme)

    def resize(self, viewport: ViewportSize) -> None:
        """Look at it on another screen."""
        self.page.set_viewport_size(viewport)

    def shoot(self, name: str) -> Path:
        """Store what is seen, whole, below `build/screenshots/`."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        file = SCREENSHOTS / f"{name}.png"
        self.page.screenshot(path=file, full_page=True, caret="initial", animations="allow")
        return file

    def shifts(self) -> list[dict[str, Any]]:
        """Give the layout shifts since the page was opened that no input caused."""
        found: list[dict[str, Any]] = self.page.evaluate("window.shifts")
        return found

    def assert_harmless(self) -> None:
        """Assert that it asked no other host, that no script failed, and that its policy stopped nothing.

        What a Content-Security-Policy stops, Chromium tells as an error on the console.
        """
        assert self.hosts <= {urlsplit(self.base_url).netloc}, f"other hosts were asked: {self.hosts}"
        assert not self.errors, f"errors were told: {self.errors}"

    def _note_host(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob", "about"):
            self.hosts.add(parts.netloc)

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.errors.append(message.text)

    def _count_bytes(self, event: dict[str, Any]) -> None:
        self.n_bytes += int(event["encodedDataLength"])


@contextmanager
def opened(browser: Browser, base_url: str) -> Iterator[Tab]:
    """Give a tab with nothing stored in it; whatever it was used for, it must have been harmless."""
    context = browser.new_context(viewport=DESK, color_scheme="light", locale="en-GB")
    try:
        tab = Tab(context, base_url)
        yield tab
        tab.assert_harmless()
    finally:
        context.close()
