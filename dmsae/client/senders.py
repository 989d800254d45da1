"""Who sends what `calls.py` describes: one who waits for each answer, and one who awaits it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx

from dmsae.client.answers import bytes_of, headers_of, is_loopback, read_answer, refuse_other_version, url_of
from dmsae.client.calls import (
    Fetch,
    Fetched,
    Pause,
    Put,
    Read,
    Request,
    Row,
    RowSteps,
    Step,
    Steps,
    unwritable,
)
from dmsae.client.rows import AsyncRows, Rows
from dmsae.errors import DmsaeError, Unavailable

T = TypeVar("T")

PUT_TIMEOUT_S = 300.0
"""Of each part of an upload, and of the store's answer once it has all."""
FETCH_TIMEOUT_S = 60.0
CHUNK_BYTES = 1 << 20
CHECK = Request("GET", "/healthz")
"""Asked before a client's first change: what an unfit server would do with one is not known."""
READS = ("GET", "HEAD")


class Sender:
    """Sends steps to one API and its store, and waits for each."""

    def __init__(self, url: str, key: str | None, timeout_s: float) -> None:
        self.http = httpx.Client(**_settings(url, key, timeout_s))
        self._is_checked = False

    def run(self, steps: Steps[T]) -> T:
        """Do what the steps say, and give what they return."""
        try:
            step = next(steps)
            while True:
                try:
                    outcome = self._do(step)
                except DmsaeError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result

    def rows(self, steps: RowSteps) -> Rows:
        """Give the rows of the steps as they are wanted."""
        return Rows(self._rows(steps))

    def _rows(self, steps: RowSteps) -> Iterator[dict[str, Any]]:
        outcome: Any = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration:
                return
            if isinstance(step, Row):
                yield step.value
            outcome = None if isinstance(step, Row) else self._do(step)

    def ask(self, request: Request) -> dict[str, Any]:
        """Ask the API once.

        Raises:
            Unavailable: it, or a part that it needs, does not answer.
            VersionMismatch: it is of a version that this client does not understand.
            DmsaeError: any other refusal.
        """
        return read_answer(self._send(request))

    def _send(self, request: Request) -> httpx.Response:
        try:
            if not self._is_checked and request.method not in READS:
                refuse_other_version(self.http.request(CHECK.method, CHECK.path))
            answer = self.http.request(request.method, request.path, **_parts(request))
        except httpx.HTTPError as error:
            raise _away(self.http.base_url, error) from error
        refuse_other_version(answer)
        self._is_checked = True
        return answer

    def _do(self, step: Step) -> Any:
        if isinstance(step, Request):
            return self.ask(step)
        if isinstance(step, Read):
            return bytes_of(self._send(Request("GET", step.path, query=step.query)))
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        return self._put(step) if isinstance(step, Put) else self._fetch(step)

    def _put(self, put: Put) -> int:
        try:
            with httpx.Client(**_store(put.url, PUT_TIMEOUT_S)) as http, put.path.open("rb") as file:
                return http.put(put.url, content=file, headers=_put_headers(put)).status_code
        except httpx.HTTPError as error:
            raise _broken_off(put.url, error) from error

    def _fetch(self, fetch: Fetch) -> Fetched:
        try:
            with (
                httpx.Client(**_store(fetch.url, FETCH_TIMEOUT_S)) as http,
                http.stream("GET", fetch.url, headers=fetch.headers) as answer,
            ):
                if answer.status_code in (200, 206):
                    with fetch.open_part(answer) as part:
                        for piece in answer.iter_raw():
                            if fetch.is_full_with(part, piece):
                                break
                return Fetched(answer.status_code)
        except httpx.HTTPError as error:
            return Fetched(None, _told(error))
        except OSError as error:
            raise unwritable(fetch.part, error) from error


class AsyncSender:
    """Sends steps to one API and its store, and awaits each."""

    def __init__(self, url: str, key: str | None, timeout_s: float) -> None:
        self.http = httpx.AsyncClient(**_settings(url, key, timeout_s))
        self._is_checked = False

    async def run(self, steps: Steps[T]) -> T:
        """Do what the steps say, and give what they return."""
        try:
            step = next(steps)
            while True:
                try:
                    outcome = await self._do(step)
                except DmsaeError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result

    def rows(self, steps: RowSteps) -> AsyncRows:
        """Give the rows of the steps as they are wanted."""
        return AsyncRows(self._rows(steps))

    async def _rows(self, steps: RowSteps) -> AsyncIterator[dict[str, Any]]:
        outcome: Any = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration:
                return
            if isinstance(step, Row):
                yield step.value
            outcome = None if isinstance(step, Row) else await self._do(step)

    async def ask(self, request: Request) -> dict[str, Any]:
        """Ask the API once.

        Raises:
            Unavailable: it, or a part that it needs, does not answer.
            VersionMismatch: it is of a version that this client does not understand.
            DmsaeError: any other refusal.
        """
        return read_answer(await self._send(request))

    async def _send(self, request: Request) -> httpx.Response:
        try:
            if not self._is_checked and request.method not in READS:
                refuse_other_version(await self.http.request(CHECK.method, CHECK.path))
            answer = await self.http.request(request.method, request.path, **_parts(request))
        except httpx.HTTPError as error:
            raise _away(self.http.base_url, error) from error
        refuse_other_version(answer)
        self._is_checked = True
        return answer

    async def _do(self, step: Step) -> Any:
        if isinstance(step, Request):
            return await self.ask(step)
        if isinstance(step, Read):
            return bytes_of(await self._send(Request("GET", step.path, query=step.query)))
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        return await (self._put(step) if isinstance(step, Put) else self._fetch(step))

    async def _put(self, put: Put) -> int:
        try:
            async with httpx.AsyncClient(**_store(put.url, PUT_TIMEOUT_S)) as http:
                answer = await http.put(put.url, content=_pieces(put.path), headers=_put_headers(put))
                return answer.status_code
        except httpx.HTTPError as error:
            raise _broken_off(put.url, error) from error

    async def _fetch(self, fetch: Fetch) -> Fetched:
        try:
            async with (
                httpx.AsyncClient(**_store(fetch.url, FETCH_TIMEOUT_S)) as http,
                http.stream("GET", fetch.url, headers=fetch.headers) as answer,
            ):
                if answer.status_code in (200, 206):
                    with fetch.open_part(answer) as part:
                        async for piece in answer.aiter_raw():
                            if fetch.is_full_with(part, piece):
                                break
                return Fetched(answer.status_code)
        except httpx.HTTPError as error:
            return Fetched(None, _told(error))
        except OSError as error:
            raise unwritable(fetch.part, error) from error


def _settings(url: str, key: str | None, timeout_s: float) -> dict[str, Any]:
    base_url = url_of(url)
    return {
        "base_url": base_url,
        "headers": headers_of(key),
        "timeout": timeout_s,
        "trust_env": not is_loopback(base_url),
    }


def _store(url: str, timeout_s: float) -> dict[str, Any]:
    return {"timeout": timeout_s, "trust_env": not is_loopback(url)}


def _parts(request: Request) -> dict[str, Any]:
    query = {name: _word(value) for name, value in (request.query or {}).items() if value is not None}
    return {"json": request.body, "params": query, "headers": dict(request.headers)}


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _put_headers(put: Put) -> dict[str, str]:
    return {**put.headers, "Content-Length": str(put.size_bytes)}


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            yield piece


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__


def _away(url: httpx.URL, error: httpx.HTTPError) -> Unavailable:
    return Unavailable(f"{url} does not answer: {_told(error)}")


def _broken_off(url: str, error: httpx.HTTPError) -> Unavailable:
    return Unavailable(f"The object store at {httpx.URL(url).netloc.decode()} broke off: {_told(error)}")
