"""Redis or Postgres flushed, frozen, killed: nothing is lost, and work goes on within seconds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
import redis
from sqlalchemy import select

from dmsae.service.cancelling import cancel_job
from dmsae.service.queue import WakeUps, class_queue, make_celery
from dmsae.service.settings import Settings
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


def test_queued_cycles_run_within_20_seconds_of_a_flushall(crew: Crew, settings: Settings) -> None:
    jobs = [crew.plant(n_cycles=2) for _ in range(2)]
    with redis.Redis.from_url(settings.broker_url.get_secret_value()) as client:
        WakeUps(make_celery(settings.broker_url)).send_wake_up("cpu")
        assert client.llen(class_queue("cpu")) == 1
        crew.start_worker()
        crew.start_sweeper()
        client.flushall()
        assert client.llen(class_queue("cpu")) == 0
    begun = time.monotonic()
    for job_id in jobs:
        crew.wait_until(job_id, "succeeded", seconds=20)
    assert time.monotonic() - begun < 20


def test_a_frozen_broker_holds_up_neither_senders_nor_training(
    crew: Crew, settings: Settings, services: RunningServices
) -> None:
    crew.start_worker()
    job_id = crew.plant(seconds=6.0)
    crew.wait_for_trainer()
    wake_ups = WakeUps(make_celery(settings.broker_url))
    services.valkey.suspend()
    try:
        begun = time.monotonic()
        assert not wake_ups.send_wake_up("cpu")
        assert time.monotonic() - begun < 5
        assert wake_ups.n_failed == 1
        crew.wait_until(job_id, "succeeded", seconds=30)
    finally:
        services.valkey.resume()
    assert wake_ups.send_wake_up("cpu")
    crew.wait_until(crew.plant(), "succeeded", seconds=30)


def test_a_worker_takes_work_again_after_three_restarts_of_the_broker(
    crew: Crew, services: RunningServices
) -> None:
    worker = crew.start_worker()
    crew.wait_until(crew.plant(), "succeeded", seconds=20)
    for _ in range(3):
        services.valkey.restart()
        time.sleep(1)
    crew.wait_until(crew.plant(), "succeeded", seconds=30)
    assert worker.poll() is None


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


def test_a_worker_that_hears_nothing_from_an_answering_broker_leaves(crew: Crew) -> None:
    crew.env["DMSAE_DEAF_AFTER_S"] = "2"
    worker = crew.start_worker(queues=class_queue("nobody-sends-here"))
    assert worker.wait(30) == 70
    assert "worker_deaf" in crew.log("worker-cpu-0")


def test_a_worker_waits_while_the_broker_is_away(crew: Crew, services: RunningServices) -> None:
    crew.env["DMSAE_DEAF_AFTER_S"] = "1"
    worker = crew.start_worker()
    services.valkey.kill()
    try:
        time.sleep(5)
        assert worker.poll() is None
        assert "wake_up_failed" in crew.log("worker-cpu-0")
    finally:
        services.valkey.restart()
