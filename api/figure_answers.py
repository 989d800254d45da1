"""How does a figure leave? Read in one transaction, drawn in its turn, compressed, known by its `ETag`."""

import gzip
import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from api.dependencies import Parts
from dmsae.figures.data import Form, Theme
from dmsae.figures.tables import FigureData
from dmsae.service.database import Transaction
from dmsae.service.drawing import draw
from dmsae.version import VERSION

ACCEPTED = re.compile(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))")
"""Whether a client takes compressed answers; a PNG is compressed in itself."""
MEDIA_TYPES = {"svg": "image/svg+xml", "png": "image/png", "csv": "text/csv; charset=utf-8"}
HEADERS = {
    "Cache-Control": "private, no-cache",
    "Vary": "Accept-Encoding",
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox",
    "X-Content-Type-Options": "nosniff",
}
"""An SVG that is opened by itself runs nothing and loads nothing."""


class Wanted(NamedTuple):
    """In what form a figure is wanted, and what it is called as a file."""

    form: Form
    theme: Theme
    name: str


IsKnown: TypeAlias = Callable[[str], bool]
Read: TypeAlias = Callable[[Transaction, IsKnown], tuple[str, FigureData | None]]
"""Gives what decides the figure, and its data: None where the client has that already."""


async def answer_figure(request: Request, parts: Parts, wanted: Wanted, read: Read) -> Response:
    """Answer with a figure or its data, or with 304.

    Raises:
        NotFound: there is no such job, or nothing to draw of it.
        Unavailable: too many figures wait to be drawn.
    """
    given = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}

    def read_once() -> tuple[str, FigureData | None]:
        return parts.database.run(lambda session: read(session, lambda seen: _tag(seen) in given))

    seen, data = await run_in_threadpool(read_once)
    headers = {**HEADERS, "ETag": f"W/{_tag(seen)}"}
    if data is None or "*" in given:
        return Response(status_code=304, headers=headers)
    place = "attachment" if wanted.form == "csv" else "inline"
    headers["Content-Disposition"] = f'{place}; filename="{wanted.name}.{wanted.form}"'
    work = partial(draw, data, wanted.form, wanted.theme, cache_dir=parts.settings.cache_dir)
    key = f"{seen} {wanted.theme} {wanted.name}.{wanted.form}"
    content = await (run_in_threadpool(work) if wanted.form == "csv" else parts.drawings.draw(key, work))
    if wanted.form != "png" and ACCEPTED.search(request.headers.get("accept-encoding", "")):
        content = await run_in_threadpool(gzip.compress, content, 6)
        headers["Content-Encoding"] = "gzip"
    return Response(content, media_type=MEDIA_TYPES[wanted.form], headers=headers)


def _tag(seen: str) -> str:
    return f'"{seen}-{VERSION}"'
