"""Serves the site that `make docs` builds of `docs/`, at `/docs/handbook`, under the web page's policy.

Nothing is built here. Where nobody built it, every address of it says so in one sentence.
"""

from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from api.web_page import Guarded
from dmsae.errors import NotFound

FOLDER = Path(__file__).parents[1] / "build" / "docs"
HOME = "/docs/handbook/"


def add_handbook(app: Starlette) -> None:
    """Serve the site below `/docs`; `/docs` alone leads to the handbook."""
    app.add_route("/docs", lead_home, methods=["GET"], include_in_schema=False)
    app.add_route("/docs/", lead_home, methods=["GET"], include_in_schema=False)
    app.mount("/docs", Guarded(GZipMiddleware(BuiltSite(FOLDER))), name="docs")


async def lead_home(_: Request) -> RedirectResponse:
    """Lead to the handbook's first page."""
    return RedirectResponse(HOME)


class BuiltSite:
    """The files of a folder, if it is there by then."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = StaticFiles(directory=folder, html=True, check_dir=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection.

        Raises:
            NotFound: nobody built the site.
        """
        if not self._folder.is_dir():
            raise NotFound("The handbook was not built here: run `make docs` in the checkout.")
        await self._files(scope, receive, send)
