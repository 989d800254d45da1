"""Event streams and long-polls over two API processes: every event once, in order, and none held up."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

import httpx
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from dmsae.cli import app
from dmsae.client.client import AsyncClient, Client
from dmsae.errors import NotFound
from dmsae.service import cancelling
from dmsae.service.database import Database
from dmsae.service.events import append_event
from dmsae.service.jobs import list_events
from dmsae.service.settings import Settings
from dmsae.service.states import move_job
from tests.conftest import RunningServices
from tests.planting import fresh_class, plant_job
from tests.serving import fresh_database, served

STREAM = {"Accept": "text/event-stream"}
LONG_S = 30
N_STREAMS = 12
"""Of one owner at most."""
N_OF_OTHER = 8
"""Of the other process at most."""
N_BUSY = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
)
KILL_HUBS = text(
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() "
    "AND pid <> pg_backend_pid() AND (query LIKE '%jobs.event_seq%' OR query LIKE 'LISTEN%'"
    " OR query LIKE '%unnest%')"
)


class Site(NamedTuple):
    """Two replicas of the API on one database."""

    one: httpx.Client
    other: httpx.Client
    database: Database

    def plant(self) -> str:
        return self.database.run(lambda session: plant_job(session, fresh_class()))

    def tell(self, job_id: str, message: str) -> None:
        self.database.run(lambda session: append_event(session, job_id, "told", message))

    def cancel(self, job_id: str) -> None:
        self.database.run(lambda session: cancelling.cancel_job(session, job_id))

    def count_events(self, job_id: str) -> int:
        return len(self.database.run(lambda session: list_events(session, job_id, after=0, limit=10_000)))


@pytest.fixture(scope="module")
def site(services: RunningServices) -> Iterator[Site]:
    fields = {name.removeprefix("DMSAE_").lower(): value for name, value in services.env.items()}
    with fresh_database(services) as url:
        settings = Settings(**{**fields, "database_url": url, "streams_per_owner": str(N_STREAMS)})
        database = Database(url, wake_up=str)
        with served(settings) as one:
            assert one.get("/healthz").status_code == 200  # two at once would build FastAPI's fields together
            with served(settings.model_copy(update={"streams_most": N_OF_OTHER})) as other:
                yield Site(one, other, database)
        database.dispose()


def lines_of(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events of a stream, each with the id that stands before it."""
    number = ""
    for line in answer.iter_lines():
        if line.startswith("id: "):
            number = line.removeprefix("id: ")
        elif line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            assert number == str(event["seq"])
            yield event


def stream(client: httpx.Client, job_id: str, *, last: int | None = None, most: int = 10**9) -> list[Any]:
    headers = {**STREAM, **({} if last is None else {"Last-Event-ID": str(last)})}
    found: list[Any] = []
    with client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        began = time.monotonic()
        for event in lines_of(answer):
            found.append(event)
            if len(found) == most or time.monotonic() - began > LONG_S:
                break
    return found


def open_when_free(stack: ExitStack, client: httpx.Client, job_id: str) -> httpx.Response:
    """Open a stream as soon as one is admitted."""
    ends_at = time.monotonic() + LONG_S
    while time.monotonic() < ends_at:
        with ExitStack() as trying:
            answer = trying.enter_context(client.stream("GET", f"/jobs/{job_id}/events", headers=STREAM))
            if answer.status_code == 200:
                stack.enter_context(trying.pop_all())
                return answer
        time.sleep(0.05)
    raise AssertionError("no stream is admitted")


def kill_hubs(site: Site) -> None:
    """End the connections on which hubs look for news, once there is one."""
    ends_at = time.monotonic() + LONG_S
    while time.monotonic() < ends_at:
        with site.database.session_scope() as session:
            if session.scalar(KILL_HUBS):
                return
        time.sleep(0.05)
    raise AssertionError("no hub has a connection")


def test_every_event_arrives_once_and_in_order_however_commits_interleave(site: Site) -> None:
    job_id = site.plant()
    with ThreadPoolExecutor(16) as threads:
        streams = [threads.submit(stream, client, job_id) for client in site[:2] for _ in range(3)]
        told = [threads.submit(site.tell, job_id, f"{i}") for i in range(60)]
        for each in told:
            each.result()
        site.cancel(job_id)
        found = [each.result(timeout=LONG_S) for each in streams]
    n_events = site.count_events(job_id)
    assert n_events > 60
    for events in found:
        assert [event["seq"] for event in events] == list(range(1, n_events + 1))
    assert found[0][-1]["kind"] == "job_cancelled"
    assert found[0] == site.one.get(f"/jobs/{job_id}/events?limit=1000").json()["items"]


def test_a_stream_goes_on_behind_the_last_event_at_another_process(site: Site) -> None:
    job_id = site.plant()
    for i in range(20):
        site.tell(job_id, f"{i}")
    first = stream(site.one, job_id, most=7)
    site.cancel(job_id)
    rest = stream(site.other, job_id, last=first[-1]["seq"])
    assert [event["seq"] for event in first + rest] == list(range(1, site.count_events(job_id) + 1))
    seen_all = {**STREAM, "Last-Event-ID": str(rest[-1]["seq"])}
    assert site.one.get(f"/jobs/{job_id}/events", headers=seen_all).status_code == 204


def test_more_events_than_a_client_is_sent_at_once_all_arrive(site: Site) -> None:
    job_id = site.plant()

    def tell_many(session: Any) -> None:
        for i in range(450):
            append_event(session, job_id, "told", f"{i}", data={"filling": "x" * 500})

    site.database.run(tell_many)
    site.cancel(job_id)
    found = stream(site.one, job_id)
    assert [event["seq"] for event in found] == list(range(1, site.count_events(job_id) + 1))


def test_streams_hold_no_transaction(site: Site) -> None:
    job_ids = [site.plant() for _ in range(N_STREAMS)]
    with ExitStack() as stack:
        answers = [
            stack.enter_context(site.one.stream("GET", f"/jobs/{job_id}/events", headers=STREAM))
            for job_id in job_ids
        ]
        with site.database.session_scope() as session:
            assert session.scalar(text(N_BUSY)) == 0
        began = time.monotonic()
        site.tell(job_ids[3], "now")
        event = next(lines_of(answers[3]))
        assert event["message"] == "now"
        assert time.monotonic() - began < LONG_S
    for job_id in job_ids:
        site.cancel(job_id)


def test_a_client_that_goes_away_frees_its_place(site: Site) -> None:
    job_id = site.plant()
    for _ in range(3):
        with ExitStack() as stack:
            for _ in range(N_STREAMS):
                open_when_free(stack, site.one, job_id)
            refused = site.one.get(f"/jobs/{job_id}/events", headers=STREAM)
            assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
            assert str(N_STREAMS) in refused.json()["detail"]
            assert refused.headers["Retry-After"] == "5"


def test_a_process_that_has_all_the_streams_it_may_have_says_503(site: Site) -> None:
    job_id = site.plant()
    with ExitStack() as stack:
        for _ in range(N_OF_OTHER):
            answer = stack.enter_context(site.other.stream("GET", f"/jobs/{job_id}/events", headers=STREAM))
            assert answer.status_code == 200
        refused = site.other.get(f"/jobs/{job_id}/events", headers=STREAM)
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        assert f"{N_OF_OTHER} streams" in refused.json()["detail"]
        assert refused.headers["Retry-After"] == "5"
    with ExitStack() as stack:
        open_when_free(stack, site.other, job_id)


def test_a_client_that_reads_nothing_is_cut_off_and_others_go_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.event_streams.SEND_TIMEOUT_S", 0.5)
    large, small = site.plant(), site.plant()

    def tell_much(session: Any) -> None:
        for i in range(800):
            append_event(session, large, "told", f"{i}", data={"filling": "x" * 20_000})

    site.database.run(tell_much)
    with ExitStack() as stack:
        lazy = stack.enter_context(closing(socket.socket()))
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect((site.one.base_url.host, site.one.base_url.port))
        asking = (
            f"GET /jobs/{large}/events HTTP/1.1",
            "Host: localhost",
            "Accept: text/event-stream",
            "",
            "",
        )
        lazy.sendall("\r\n".join(asking).encode())
        events = lines_of(open_when_free(stack, site.one, small))
        for i in range(3):
            site.tell(small, f"{i}")
            assert next(events)["message"] == f"{i}"
        for _ in range(N_STREAMS - 1):  # the last of them has a place only once the lazy one has lost its own
            open_when_free(stack, site.one, small)
        site.tell(small, "still")
        assert next(events)["message"] == "still"
        lazy.settimeout(LONG_S)
        size = sum(map(len, iter(lambda: lazy.recv(1 << 20), b"")))
        assert 0 < size < 800 * 20_000


def test_a_stream_outlives_the_database_connection_of_its_process(site: Site) -> None:
    job_id = site.plant()
    site.tell(job_id, "before")
    with ExitStack() as stack:
        told = lines_of(open_when_free(stack, site.one, job_id))
        events = [next(told)]
        kill_hubs(site)
        site.tell(job_id, "between")
        site.cancel(job_id)
        events += told
    assert [event["seq"] for event in events] == list(range(1, site.count_events(job_id) + 1))


def test_a_connection_that_is_lost_while_nobody_watches_is_made_anew(site: Site) -> None:
    site.cancel(job_id := site.plant())
    assert stream(site.one, job_id)
    kill_hubs(site)
    time.sleep(0.5)  # the hub, woken by the end of its connection, has slept and woken some times since
    site.cancel(job_id := site.plant())
    events = stream(site.one, job_id)
    assert [event["seq"] for event in events] == list(range(1, site.count_events(job_id) + 1))


def test_a_stream_of_nothing_and_a_strange_last_event_are_refused(site: Site) -> None:
    assert site.one.get("/jobs/job_none/events", headers=STREAM).status_code == 404
    job_id = site.plant()
    for last in ("x", "-1", "9223372036854775808", "1.5"):
        answer = site.one.get(f"/jobs/{job_id}/events", headers={**STREAM, "Last-Event-ID": last})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    page = site.one.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": "5"})
    assert page.json() == {"items": [], "after": 5}


def test_a_long_poll_is_answered_as_soon_as_the_job_changes(site: Site) -> None:
    job_id = site.plant()
    tag = site.one.get(f"/jobs/{job_id}").headers["ETag"]
    threading.Timer(0.3, site.tell, (job_id, "news")).start()
    began = time.monotonic()
    answer = site.other.get(f"/jobs/{job_id}?wait=20", headers={"If-None-Match": tag})
    assert 0.2 < time.monotonic() - began < 3
    assert answer.status_code == 200
    assert answer.headers["ETag"] != tag
    at_once = site.one.get(f"/jobs/{job_id}?wait=20", headers={"If-None-Match": tag})
    assert at_once.headers["ETag"] == answer.headers["ETag"]


def test_a_long_poll_without_news_ends_with_304_and_needs_a_version_and_a_bound(site: Site) -> None:
    job_id = site.plant()
    tag = site.one.get(f"/jobs/{job_id}").headers["ETag"]
    began = time.monotonic()
    answer = site.one.get(f"/jobs/{job_id}?wait=0.5", headers={"If-None-Match": tag})
    assert (answer.status_code, answer.headers["ETag"]) == (304, tag)
    assert 0.4 < time.monotonic() - began < 2
    without = site.one.get(f"/jobs/{job_id}?wait=5")
    assert (without.status_code, without.json()["param"]) == (400, "wait")
    for wait in ("-1", "61", "nan", "x"):
        refused = site.one.get(f"/jobs/{job_id}?wait={wait}", headers={"If-None-Match": tag})
        assert refused.status_code == 422


def test_a_long_poll_sees_a_job_end(site: Site) -> None:
    job_id = site.plant()
    site.database.run(lambda session: move_job(session, job_id, "running"))
    tag = site.one.get(f"/jobs/{job_id}").headers["ETag"]
    threading.Timer(
        0.3, lambda: site.database.run(lambda session: move_job(session, job_id, "failed"))
    ).start()
    answer = site.one.get(f"/jobs/{job_id}?wait=20", headers={"If-None-Match": tag})
    assert answer.json()["state"] == "failed"


def test_the_client_follows_a_job_to_its_end_and_the_command_line_ends_as_the_job_did(site: Site) -> None:
    job_id = site.plant()
    site.tell(job_id, "[one]")
    url = str(site.one.base_url)
    threading.Timer(0.3, site.cancel, (job_id,)).start()
    shown = CliRunner().invoke(app, ["watch", job_id, "--url", url])
    assert shown.exit_code == 5, shown.output
    assert "[one]" in shown.output
    with Client(url) as client:
        seen = [event["seq"] for event in client.jobs.watch(job_id)]
        assert seen == list(range(1, site.count_events(job_id) + 1))
        with pytest.raises(NotFound):
            next(client.jobs.watch("job_none"))

    async def watch() -> list[int]:
        async with AsyncClient(url) as client:
            return [event["seq"] async for event in client.jobs.watch(job_id, after=1)]

    assert asyncio.run(watch()) == seen[1:]
