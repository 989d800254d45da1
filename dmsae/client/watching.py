"""Follow a job as it goes: its events one by one, whatever breaks off in between."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx

from dmsae.client.answers import error_of
from dmsae.errors import Unavailable

STREAM = "text/event-stream"
SILENCE_S = 60.0
"""The service says something every 15 s; after so long without a word the connection is dead."""
N_TRIES = 10
"""In a row without an event, before it is given up."""
SHORTEST_WAIT_S, LONGEST_WAIT_S = 0.1, 30.0
AWAY = (429, 502, 503, 504)
DATA = "data: "


def follow(http: httpx.Client, job_id: str, *, after: int = 0) -> Iterator[dict[str, Any]]:
    """Give each event behind a number once, as it happens, until the job has ended.

    A stream that breaks off is gone on from at the last event that came.

    Raises:
        Unavailable: the service was not to be reached so many times in a row.
        DmsaeError: it answered with a problem.
    """
    watch = _Watch(job_id, after)
    while not watch.is_over:
        try:
            with http.stream(**watch.request()) as answer:
                if watch.is_refused(answer):
                    answer.read()
                    raise error_of(answer)
                for line in answer.iter_lines():
                    if line.startswith(DATA):
                        yield watch.take(line)
        except httpx.HTTPError as error:
            watch.check_tries(http.base_url, error)
        time.sleep(watch.wait_s)


async def follow_async(
    http: httpx.AsyncClient, job_id: str, *, after: int = 0
) -> AsyncIterator[dict[str, Any]]:
    """Do the same, each event awaited.

    Raises:
        Unavailable: the service was not to be reached so many times in a row.
        DmsaeError: it answered with a problem.
    """
    watch = _Watch(job_id, after)
    while not watch.is_over:
        try:
            async with http.stream(**watch.request()) as answer:
                if watch.is_refused(answer):
                    await answer.aread()
                    raise error_of(answer)
                async for line in answer.aiter_lines():
                    if line.startswith(DATA):
                        yield watch.take(line)
        except httpx.HTTPError as error:
            watch.check_tries(http.base_url, error)
        await asyncio.sleep(watch.wait_s)


class _Watch:
    """How far one has come, and how often in a row it came no further."""

    def __init__(self, job_id: str, after: int) -> None:
        self._path, self._after = f"/jobs/{job_id}/events", after
        self._n_tried = 0
        self.is_over = False
        """Whether the job has ended, and everything was told."""

    @property
    def wait_s(self) -> float:
        """How long to wait before the next try."""
        if self.is_over:
            return 0.0
        if self._n_tried <= 1:
            return SHORTEST_WAIT_S
        return float(min(LONGEST_WAIT_S, 0.5 * 2 ** min(self._n_tried, 10)))

    def request(self) -> dict[str, Any]:
        """Ask for what comes behind the last event that came."""
        self._n_tried += 1
        headers = {"Accept": STREAM, "Last-Event-ID": str(self._after)}
        timeout = httpx.Timeout(30.0, read=SILENCE_S)
        return {"method": "GET", "url": self._path, "headers": headers, "timeout": timeout}

    def is_refused(self, answer: httpx.Response) -> bool:
        """Tell whether the service answered, and will answer the same again.

        Raises:
            HTTPStatusError: it may well answer otherwise in a moment.
        """
        self.is_over = answer.status_code == 204
        if answer.status_code in AWAY:
            answer.raise_for_status()
        return answer.status_code not in (200, 204)

    def take(self, line: str) -> dict[str, Any]:
        """Give the event of a line, from which on the next try goes."""
        event: dict[str, Any] = json.loads(line.removeprefix(DATA))
        self._after, self._n_tried = event["seq"], 0
        return event

    def check_tries(self, url: httpx.URL, error: httpx.HTTPError) -> None:
        """Go on, unless it was in vain too often.

        Raises:
            Unavailable: it was.
        """
        if self._n_tried >= N_TRIES:
            raise Unavailable(f"{url} does not answer: {error}") from error
