"""Event streams while processes of the API end and come back: no event lost, none told twice.

Nor do streams hold connections of Postgres, however many they are.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
import psycopg
import pytest

from dmsae.local.ports import pick_free
from dmsae.local.processes import Child, Program
from dmsae.local.programs import answers
from dmsae.service.cancelling import cancel_job
from dmsae.service.database import APPLICATION_NAME, Database
from dmsae.service.events import append_event
from tests.faults.crew import ROOT, wait_for
from tests.planting import fresh_class, plant_job

STREAM = {"Accept": "text/event-stream"}
N_JOBS = 3
N_STREAMS = 50
TELL_EVERY_S = 0.03
CONNECTIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
)


class Apis(NamedTuple):
    """Two processes of the API on one database."""

    children: list[Child]
    urls: list[str]


@pytest.fixture
def apis(stack_env: dict[str, str], tmp_path: Path) -> Iterator[Apis]:
    ports = pick_free(2)
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    children = [
        Child(
            Program(
                name=f"api-{port}",
                command=(sys.executable, "-m", "api"),
                folder=ROOT,
                log=tmp_path / f"api-{port}.log",
                env={**stack_env, "DMSAE_PORT": str(port)},
                is_ready=partial(answers, url),
                stop_timeout_s=15,
            )
        )
        for port, url in zip(ports, urls, strict=True)
    ]
    try:
        for child in children:
            child.start()
        for child in children:
            child.wait_ready(60)
        yield Apis(children, urls)
    finally:
        for child in children:
            child.stop()


class Follower(threading.Thread):
    """Reads a job's events to their end, from one process or the next, behind the last that arrived."""

    def __init__(self, job_id: str, urls: list[str]) -> None:
        super().__init__(daemon=True)
        self.job_id, self.urls = job_id, urls
        self.seqs: list[int] = []
        self.n_broken = 0
        self.has_ended = False

    def run(self) -> None:
        while not self.has_ended:
            try:
                self._read(self.urls[self.n_broken % len(self.urls)])
            except httpx.HTTPError:
                time.sleep(0.05)
            self.n_broken += not self.has_ended

    def _read(self, url: str) -> None:
        headers = {**STREAM, "Last-Event-ID": str(self.seqs[-1] if self.seqs else 0)}
        with httpx.stream(
            "GET", f"{url}/jobs/{self.job_id}/events", headers=headers, timeout=30, trust_env=False
        ) as answer:
            if answer.status_code == 204:
                self.has_ended = True
                return
            answer.raise_for_status()
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    self.seqs.append(json.loads(line.removeprefix("data: "))["seq"])


class Teller(threading.Thread):
    """Tells events of jobs until it is stopped, then ends the jobs."""

    def __init__(self, database: Database, job_ids: list[str]) -> None:
        super().__init__(daemon=True)
        self.database, self.job_ids = database, job_ids
        self.stop = threading.Event()
        self.n_told = 0

    def run(self) -> None:
        while not self.stop.wait(TELL_EVERY_S):
            for job_id in self.job_ids:
                self.database.run(lambda s, job_id=job_id: append_event(s, job_id, "told", "more"))
            self.n_told += 1
        for job_id in self.job_ids:
            self.database.run(lambda s, job_id=job_id: cancel_job(s, job_id))


def last_seq(database: Database, job_id: str) -> int:
    with database.session_scope() as session:
        seq: int = (
            session.connection()
            .exec_driver_sql("SELECT event_seq FROM jobs WHERE id = %(id)s", {"id": job_id})
            .scalar_one()
        )
        return seq


def test_no_event_is_lost_or_doubled_while_processes_of_the_api_end_and_come_back(
    apis: Apis, database: Database
) -> None:
    job_ids = [database.run(lambda s: plant_job(s, fresh_class())) for _ in range(N_JOBS)]
    one, other = apis.urls
    followers = [Follower(job_id, urls) for job_id in job_ids for urls in ([one], [other], [one, other])]
    teller = Teller(database, job_ids)
    for thread in (teller, *followers):
        thread.start()
    wait_for(lambda: all(each.seqs for each in followers), seconds=30, what="each stream has begun")
    for victim, end in zip(apis.children, (Child.stop, Child.kill), strict=True):
        n_told = teller.n_told
        end(victim)
        assert not victim.is_alive()
        wait_for(lambda n=n_told: teller.n_told > n + 10, seconds=30, what="more was told")
        victim.start()
        victim.wait_ready(60)
    teller.stop.set()
    for thread in (teller, *followers):
        thread.join(60)
        assert not thread.is_alive()
    for follower in followers:
        assert follower.n_broken >= 1
        assert follower.seqs == list(range(1, last_seq(database, follower.job_id) + 1))
    assert teller.n_told > 20


def test_streams_take_no_connections_of_postgres(
    apis: Apis, database: Database, stack_env: dict[str, str]
) -> None:
    job_id = database.run(lambda s: plant_job(s, fresh_class()))
    database_url = stack_env["DMSAE_DATABASE_URL"].replace("+psycopg", "")
    with ExitStack() as stack:
        http = stack.enter_context(httpx.Client(base_url=apis.urls[0], timeout=30, trust_env=False))
        seeing = stack.enter_context(psycopg.connect(database_url, autocommit=True))
        with ThreadPoolExecutor(10) as threads:  # by then the pool has what requests ever need
            list(threads.map(lambda _: http.get(f"/jobs/{job_id}"), range(40)))
        n_connections: dict[int, int] = {}
        for n_open in range(1, N_STREAMS + 1):
            answer = stack.enter_context(http.stream("GET", f"/jobs/{job_id}/events", headers=STREAM))
            assert answer.status_code == 200
            if n_open in (1, N_STREAMS):
                assert next(answer.iter_raw()).startswith(b"retry: ")
                time.sleep(0.5)  # the hub has looked
                (n_connections[n_open],) = seeing.execute(CONNECTIONS, [APPLICATION_NAME]).fetchone() or ()
        assert n_connections[1] >= 2
        assert (
            n_connections[N_STREAMS] <= n_connections[1] + 1
        )  # whatever their number; the pool may differ by one
