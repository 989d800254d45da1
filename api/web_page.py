"""Serves the web page: its files, compressed, under a policy that runs nothing but them.

The files hold no data, so they are sent to anybody; what the page shows it asks the API for, with the key of
whoever looks. `/` is the page, `/ui/...` are its scripts and styles; the rest of its address is a fragment.
"""

from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FOLDER = Path(__file__).parent / "web"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""`no-cache`: a browser keeps the files, and asks each time whether they are still these (`ETag`)."""


def add_web_page(app: Starlette) -> None:
    """Serve the page at `/`, and its files below `/ui`."""
    app.add_route("/", read_page, methods=["GET"], include_in_schema=False)
    app.mount("/ui", Guarded(GZipMiddleware(StaticFiles(directory=FOLDER))), name="ui")


async def read_page(_: Request) -> FileResponse:
    """Send the page."""
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


class Guarded:
    """Puts the page's headers on every answer of an application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_guarded)
