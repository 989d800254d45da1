"""Postgres frozen or gone: training goes on in the same attempt, and nothing counts as crashed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from sqlalchemy import select

from dmsae.service.cancelling import cancel_job
from dmsae.service.tables import MetricPoint
from tests.conftest import RunningServices
from tests.faults.crew import Crew, wait_for
from tests.planting import outcomes


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Freeze Postgres with its backends, each of which leads a session of its own."""
    main = psutil.Process(pid)
    stopped = [main, *main.children(recursive=True)]
    for process in stopped:
        process.suspend()
    try:
        yield
    finally:
        for process in reversed(stopped):
            process.resume()


def test_training_goes_on_while_postgres_is_frozen_and_nothing_counts_as_crashed(
    crew: Crew, services: RunningServices
) -> None:
    crew.start_sweeper()
    crew.start_worker()
    job_id = crew.plant(seconds=5.0)
    trainer = crew.wait_for_trainer()
    with frozen(services.postgres.pid):
        wait_for(lambda: ("end", job_id, 0, trainer) in crew.marks(), seconds=20, what="the trainer finishes")
    crew.wait_until(job_id, "succeeded", seconds=30)
    with crew.database.session_scope() as session:
        assert outcomes(session, job_id) == ["succeeded"]


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_training_goes_on_while_postgres_is_gone(
    crew: Crew, services: RunningServices, *, is_cancelled: bool
) -> None:
    crew.start_sweeper()
    crew.start_worker()
    job_id = crew.plant(seconds=5.0)
    trainer = crew.wait_for_trainer()
    services.postgres.kill()
    time.sleep(5)
    services.postgres.restart()
    assert "heartbeat_missed" in crew.log("worker-cpu-0")
    if is_cancelled:
        crew.database.run(lambda session: cancel_job(session, job_id))
    crew.wait_until(job_id, "cancelled" if is_cancelled else "succeeded", seconds=30)
    with crew.database.session_scope() as session:
        assert outcomes(session, job_id) == ["cancelled" if is_cancelled else "succeeded"]
        assert is_cancelled or len(session.scalars(select(MetricPoint.step)).all()) == 5
    assert trainer not in crew.orphans()
