"""A worker frozen for longer than its lease: what it does once it thaws changes nothing that is recorded."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from sqlalchemy import select

from dmsae.service.objects import ObjectStore
from dmsae.service.settings import Settings
from dmsae.service.table_base import Table
from tests.faults.crew import IS_FULL, Crew, in_full, wait_for

HEARTBEAT_S = 0.5
STOPPING_S = 1.5 if IS_FULL else 30.0
"""What it takes beside one heartbeat to end a trainer of 100 s; in the suite others compute meanwhile."""
OF_PROCESSES = ("workers", "queue_snapshots", "action_tallies")
"""Tables that say which workers are there, what waits and what sweepers did: they change all the time."""


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def rows(crew: Crew) -> dict[str, list[tuple[object, ...]]]:
    """Everything that is stored of jobs."""
    with crew.database.session_scope() as session:
        return {
            table.name: sorted((tuple(row) for row in session.execute(select(table))), key=repr)
            for table in Table.metadata.sorted_tables
            if table.name not in OF_PROCESSES
        }


def objects(settings: Settings, job_id: str) -> dict[str, str]:
    """Every object of a job, with its etag."""
    store = ObjectStore(settings)
    listed = store._client.list_objects_v2(Bucket=settings.s3_bucket, Prefix=f"jobs/{job_id}/")
    store.close()
    return {item["Key"]: item["ETag"] for item in listed.get("Contents", [])}


@pytest.mark.parametrize(
    "is_trainer_frozen", [True, pytest.param(False, marks=in_full)], ids=["both", "supervisor"]
)
def test_another_worker_finishes_and_the_thawed_one_changes_nothing(
    crew: Crew, settings: Settings, *, is_trainer_frozen: bool
) -> None:
    crew.start_sweeper()
    job_id = crew.plant(n_steps=1000, seconds=100.0, every=1)
    worker = crew.start_worker("cpu:0")
    trainer = crew.wait_for_trainer("cpu:0")
    crew.wait_for_phase(job_id, "training")
    other = crew.plant(n_cycles=2, seconds=0.5)
    with frozen([worker.pid, *[trainer] * is_trainer_frozen]):
        wait_for(lambda: crew.outcomes(job_id) == ["crashed"], seconds=60, what="its lease runs out")
        crew.behave(job_id)
        crew.start_worker("cpu:1")
        for each in (job_id, other):
            crew.wait_until(each, "succeeded", seconds=60)
        assert psutil.pid_exists(trainer)
        before, stored_before = rows(crew), objects(settings, job_id)
    thawed_at = time.monotonic()
    wait_for(lambda: not psutil.pid_exists(trainer), seconds=60, what="the stale trainer is stopped")
    assert time.monotonic() - thawed_at < HEARTBEAT_S + STOPPING_S
    wait_for(lambda: '"stale"' in crew.log("worker-cpu-0"), seconds=60, what="the attempt ends")
    assert rows(crew) == before
    of_thawed = f"jobs/{job_id}/cycles/0/attempts/1-"
    later = {key: tag for key, tag in objects(settings, job_id).items() if not key.startswith(of_thawed)}
    assert later == {key: tag for key, tag in stored_before.items() if not key.startswith(of_thawed)}
    assert crew.outcomes(job_id) == ["crashed", "succeeded"]
