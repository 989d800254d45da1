"""What a request costs is bounded: statements of a submission and of a job that is shown, words of events."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import psycopg
import pytest

from api import event_streams
from api.schemas import EventOut
from dmsae.service.event_hub import Watcher
from dmsae.service.events import Head, ToldEvent
from dmsae.service.settings import Settings
from tests.serving import served

MOST_TO_SUBMIT = 7
"""Who asks, the owner's limits, who did the same, jobs, cycles, first events, and why the job waits."""
MOST_TO_SHOW = 2
"""Who asks, and the job with its place in line and all that says why it waits."""


@contextmanager
def counted() -> Iterator[list[str]]:
    """Note the statements that this process sends, as the driver gets them."""
    sent: list[str] = []
    real = psycopg.Cursor.execute

    def noting(cursor: psycopg.Cursor, statement: str, *args: Any, **options: Any) -> psycopg.Cursor:
        sent.append(statement)
        return real(cursor, statement, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.Cursor, "execute", noting)
        yield sent


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    with served(settings) as client:
        client.post("/distillations", json={"preset": "demo"}).raise_for_status()
        yield client


@pytest.mark.parametrize("body", [{"n_cycles": 3}, {"n_cycles": 40}, {"chains": 5, "n_cycles": 2}])
def test_a_submission_takes_as_many_statements_whatever_it_makes(
    api: httpx.Client, body: dict[str, Any]
) -> None:
    with counted() as sent:
        assert api.post("/distillations", json={"preset": "demo", **body}).status_code == 202
    assert 0 < len(sent) <= MOST_TO_SUBMIT, sent


def test_a_new_job_is_answered_as_it_is_shown_afterwards_and_shown_by_few_statements(
    api: httpx.Client,
) -> None:
    made = api.post("/distillations", json={"preset": "demo", "name": "mine", "tags": ["a"]}).json()
    with counted() as sent:
        shown = api.get(f"/jobs/{made['id']}")
    assert shown.json() == made
    assert shown.headers["ETag"] == f'"{made["version"]}"'
    assert 0 < len(sent) <= MOST_TO_SHOW, sent
    api.post(f"/jobs/{made['id']}/cancel").raise_for_status()
    with counted() as sent:
        assert api.get(f"/jobs/{made['id']}").json()["state"] == "cancelled"
    assert 0 < len(sent) <= MOST_TO_SHOW, sent


def test_an_event_is_put_into_words_once_for_all_who_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[int] = []
    real = EventOut.model_validate

    def validate(told: ToldEvent) -> EventOut:
        said.append(told.seq)
        return real(told)

    monkeypatch.setattr(event_streams.EventOut, "model_validate", validate)
    events = [ToldEvent(n, "told", f"{n}", None, None, {}, datetime.now(UTC)) for n in (1, 2)]

    async def watch() -> list[bytes]:
        watchers = [Watcher("job_1", after=0, ask=lambda: None) for _ in range(5)]
        for watcher in watchers:
            watcher.take(Head(3, 2, has_ended=True), events)
        return [b"".join([piece async for piece in event_streams.told(watcher)]) for watcher in watchers]

    streams = asyncio.run(watch())
    assert said == [1, 2]
    assert len(set(streams)) == 1
    lines = [line for line in streams[0].decode().splitlines() if line.startswith("data: ")]
    assert [json.loads(line.removeprefix("data: "))["seq"] for line in lines] == [1, 2]
