"""Both clients follow a job over breaks: every event once, asked for from where the last one came."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from dmsae.client.client import AsyncClient, Client
from dmsae.client.watching import N_TRIES
from dmsae.errors import NotFound, Unavailable

URL = "http://127.0.0.1:1"
PROBLEM = {"detail": "There is no job 'job_1'.", "code": "not_found"}
Handler = Callable[[httpx.Request], httpx.Response]
Follow = Callable[[int], list[int]]


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of a stream that breaks off behind its events."""

    def __init__(self, *numbers: int) -> None:
        self._text = b"retry: 2000\n\n" + b"".join(
            f"id: {number}\ndata: {json.dumps({'seq': number})}\n\n: still here\n\n".encode()
            for number in numbers
        )

    def __iter__(self) -> Iterator[bytes]:
        yield self._text
        raise httpx.ReadError("connection reset")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._text
        raise httpx.ReadError("connection reset")


@pytest.fixture(params=["sync", "async"])
def follow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Handler], Follow]:
    """Follow a job with one of the clients, answered by a function; no pause lasts."""
    real = {"Client": httpx.Client, "AsyncClient": httpx.AsyncClient}

    async def at_once(_: float) -> None: ...

    async def awaited(after: int) -> list[int]:
        async with AsyncClient(URL) as client:
            return [event["seq"] async for event in client.jobs.watch("job_1", after=after)]

    def waited_for(after: int) -> list[int]:
        with Client(URL) as client:
            return [event["seq"] for event in client.jobs.watch("job_1", after=after)]

    def answered_by(handler: Handler) -> Follow:
        def made(name: str) -> Any:
            return lambda **given: real[name](**given, transport=httpx.MockTransport(handler))

        for name in real:
            monkeypatch.setattr(f"dmsae.client.senders.httpx.{name}", made(name))
        monkeypatch.setattr("dmsae.client.watching.time.sleep", lambda _: None)
        monkeypatch.setattr("dmsae.client.watching.asyncio.sleep", at_once)
        return waited_for if request.param == "sync" else lambda after: asyncio.run(awaited(after))

    return answered_by


def test_each_event_comes_once_and_the_next_try_asks_behind_the_last(
    follow: Callable[[Handler], Follow],
) -> None:
    asked: list[int] = []
    answers = [
        httpx.Response(200, stream=Pieces(4, 5)),
        httpx.Response(503),
        httpx.Response(200, stream=Pieces()),
        httpx.Response(200, stream=Pieces(6)),
        httpx.Response(204),
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(int(request.headers["last-event-id"]))
        assert request.headers["accept"] == "text/event-stream"
        return answers[len(asked) - 1]

    assert follow(answer)(3) == [4, 5, 6]
    assert asked == [3, 5, 5, 5, 6]


def test_a_service_that_stays_away_is_given_up_and_a_refusal_is_told_at_once(
    follow: Callable[[Handler], Follow],
) -> None:
    n_asked = 0

    def away(_: httpx.Request) -> httpx.Response:
        nonlocal n_asked
        n_asked += 1
        return httpx.Response(502)

    with pytest.raises(Unavailable, match="does not answer"):
        follow(away)(0)
    assert n_asked == N_TRIES
    with pytest.raises(NotFound, match="There is no job 'job_1'"):
        follow(lambda _: httpx.Response(404, json=PROBLEM))(0)
