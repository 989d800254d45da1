"""Redis flushed, restarted, away, frozen, full, deaf: every queued cycle runs once, at most seconds late."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis

from dmsae.service.queue import WakeUps, class_queue, make_celery, ping_broker
from dmsae.service.settings import settings_from
from tests.conftest import RunningServices
from tests.faults.crew import IS_FULL, ROOT, Crew, in_full, wait_for
from tests.faults.staff import SOON_S, Staff, staffed

AWAY_S = 120.0 if IS_FULL else 3.0


@pytest.fixture(scope="module")
def staff(services: RunningServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staff]:
    with staffed(services, tmp_path_factory.mktemp("crew")) as staff:
        yield staff


@contextmanager
def away(services: RunningServices) -> Iterator[None]:
    services.valkey.kill()
    try:
        yield
    finally:
        services.valkey.restart()


def test_cycles_queued_before_a_flushall_in_the_middle_of_others_run_once(staff: Staff) -> None:
    jobs = staff.train(1.5, 1.5, 1.5, 1.5, n_cycles=2)
    posted = staff.post()
    wait_for(lambda: staff.broker.llen(class_queue("cpu")), seconds=5, what="wake-ups wait in the broker")
    staff.broker.flushall()
    assert staff.broker.dbsize() == 0
    staff.assert_ran_once(jobs, n_cycles=2)
    staff.assert_ran_once([posted], n_cycles=3)
    assert set(staff.crew.count("begin").values()) == {1}


def test_workers_take_work_again_after_three_restarts_within_seconds(
    staff: Staff, services: RunningServices
) -> None:
    jobs, pids = staff.train(2.0, 2.0, n_cycles=2), set()
    for _ in range(3):
        services.valkey.restart()
        pids.add(services.valkey.pid)
        jobs.append(staff.crew.plant())
        time.sleep(0.7)
    assert len(pids) == 3
    staff.assert_ran_once(jobs[:2], n_cycles=2)
    staff.assert_ran_once([*jobs[2:], staff.crew.plant()])


@pytest.mark.timeout(300 + 2 * AWAY_S)
def test_jobs_are_taken_while_the_broker_is_away_and_run_seconds_after_it_came_back(
    staff: Staff, services: RunningServices
) -> None:
    broker_url = settings_from(staff.crew.env).broker_url
    running = staff.crew.plant(n_cycles=2, seconds=3.0)
    staff.crew.wait_for_phase(running, "training")
    with away(services):
        assert not ping_broker(broker_url)
        posted = staff.post()
        time.sleep(AWAY_S)
        wait_for(lambda: "succeeded" in staff.crew.outcomes(running), seconds=60, what="a cycle is recorded")
        wait_for(
            lambda: "wake_up_failed" in staff.crew.log("sweeper"), seconds=60, what="the sweeper notes it"
        )
        assert [worker.poll() for worker in staff.workers] == [None, None]
    begun = time.monotonic()
    staff.assert_ran_once([running], n_cycles=2)
    staff.assert_ran_once([posted], n_cycles=3)
    assert time.monotonic() - begun < SOON_S


def test_while_the_broker_is_full_jobs_are_taken_and_run(staff: Staff) -> None:
    staff.broker.config_set("maxmemory", "1")
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            staff.broker.set("one", "more")
        jobs = [staff.crew.plant(n_cycles=2) for _ in range(2)]
        posted = staff.post()
        staff.assert_ran_once(jobs, n_cycles=2, seconds=2 * SOON_S)
        staff.assert_ran_once([posted], n_cycles=3)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            staff.broker.set("one", "more")
        assert "broker_takes_nothing" in staff.crew.log("worker-cpu-0")
    finally:
        staff.broker.config_set("maxmemory", "0")
    staff.assert_ran_once([staff.crew.plant(), staff.crew.plant()])


def test_a_frozen_broker_holds_up_neither_senders_nor_training(
    staff: Staff, services: RunningServices
) -> None:
    job_id = staff.crew.plant(seconds=3.0)
    staff.crew.wait_for_phase(job_id, "training")
    wake_ups = WakeUps(make_celery(settings_from(staff.crew.env).broker_url))
    services.valkey.suspend()
    try:
        begun = time.monotonic()
        assert not wake_ups.send_wake_up("cpu")
        assert time.monotonic() - begun < 30
        assert wake_ups.n_failed == 1
        staff.assert_ran_once([job_id], n_cycles=1, seconds=60)
    finally:
        services.valkey.resume()
    assert wake_ups.send_wake_up("cpu")
    staff.assert_ran_once([staff.crew.plant()])


@in_full
def test_a_worker_that_hears_nothing_from_an_answering_broker_leaves(crew: Crew) -> None:
    crew.env["DMSAE_DEAF_AFTER_S"] = "2"
    worker = crew.start_worker(queues=class_queue("nobody-sends-here"))
    assert worker.wait(30) == 70
    assert "worker_deaf" in crew.log("worker-cpu-0")


@in_full
def test_a_worker_waits_while_the_broker_is_away(crew: Crew, services: RunningServices) -> None:
    crew.env["DMSAE_DEAF_AFTER_S"] = "1"
    worker = crew.start_worker()
    with away(services):
        time.sleep(5)
        assert worker.poll() is None
        assert "wake_up_failed" in crew.log("worker-cpu-0")


def test_an_evicting_broker_is_refused_at_the_start_of_worker_and_api(crew: Crew) -> None:
    with redis.Redis.from_url(crew.env["DMSAE_BROKER_URL"]) as broker:
        broker.config_set("maxmemory-policy", "allkeys-lru")
        try:
            worker = crew.begin_worker("cpu:0")
            command = [sys.executable, "-m", "api"]
            api = subprocess.run(
                command, env=crew.env, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
            )
            assert (worker.wait(30), api.returncode) == (1, 1)
        finally:
            broker.config_set("maxmemory-policy", "noeviction")
    told = "maxmemory-policy = 'allkeys-lru': the broker of DMSAE_BROKER_URL must not evict"
    for said in (crew.log("worker-cpu-0"), api.stdout + api.stderr):
        assert told in said
        assert "noeviction" in said
