"""Follow a job as it goes: its events one by one, whatever breaks off in between."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx

from dmsae.errors import Unavailable

STREAM = "text/event-stream"
SILENCE_S = 60.0
"""The service says something every 15 s; after so long without a word the connection is dead."""
N_TRIES = 10
"""In a row without an event, before it is given up."""
LONGEST_WAIT_S = 30.0
AWAY = (429, 502, 503, 504)


class Refused(Exception):
    """The service answered, and will answer the same again."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__()
        self.response = response


def follow(http: httpx.Client, job_id: str, *, after: int = 0) -> Iterator[dict[str, Any]]:
    """Give each event behind a number once, as it happens, until the job has ended.

    A stream that breaks off is gone on from at the last event that came.

    Raises:
        Unavailable: the service was not to be reached so many times in a row.
        Refused: it answered with a problem.
    """
    n_failed = 0
    while True:
        try:
            for event in _stream(http, job_id, after=after):
                after, n_failed = event["seq"], 0
                yield event
            n_failed += 1
        except StopFollowing:
            return
        except httpx.HTTPError as error:
            n_failed += 1
            if n_failed >= N_TRIES:
                raise Unavailable(f"{http.base_url} does not answer: {error}") from error
        time.sleep(min(LONGEST_WAIT_S, 0.5 * 2 ** min(n_failed, 10)) if n_failed > 1 else 0.1)


class StopFollowing(Exception):
    """The job has ended, and everything was told."""


def _stream(http: httpx.Client, job_id: str, *, after: int) -> Iterator[dict[str, Any]]:
    headers = {"Accept": STREAM, "Last-Event-ID": str(after)}
    timeout = httpx.Timeout(30.0, read=SILENCE_S)
    with http.stream("GET", f"/jobs/{job_id}/events", headers=headers, timeout=timeout) as answer:
        if answer.status_code == 204:
            raise StopFollowing
        if answer.status_code in AWAY:
            answer.raise_for_status()
        if answer.status_code != 200:
            answer.read()
            raise Refused(answer)
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))
