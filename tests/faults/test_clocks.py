"""Workers whose clocks are an hour off, both ways: nothing breaks, since times come from Postgres."""

import datetime
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import func, select

from dmsae.service.queue import WakeUps, make_celery
from dmsae.service.settings import settings_from
from dmsae.service.tables import Attempt, Event
from tests.faults.crew import IS_FULL, Crew, in_full, wait_for

HOUR_S = 3600
N_JOBS = 8 if IS_FULL else 2
SHIFTS_S = {"cpu:0": HOUR_S, "cpu:1": -HOUR_S}
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")


def begin_shifted(crew: Crew, device: str, shift_s: int) -> subprocess.Popen[bytes]:
    """Start a worker whose clock is so far off."""
    honest = dict(crew.env)
    folder = Path(__file__).parent / "shifted_clock"
    crew.env.update(PYTHONPATH=str(folder), SHIFT_CLOCK_S=str(shift_s))
    try:
        return crew.begin_worker(device)
    finally:
        crew.env.clear()
        crew.env.update(honest)


def wait_for_start(crew: Crew, log: str) -> None:
    wait_for(lambda: "worker_started" in crew.log(log), seconds=60, what="the worker starts")


def offset_s(log: str) -> float:
    """How far the clock is off by which a log that is being written was stamped last."""
    stamped = datetime.datetime.fromisoformat(STAMP.findall(log)[-1]).replace(tzinfo=datetime.UTC)
    return (stamped - datetime.datetime.now(datetime.UTC)).total_seconds()


@in_full
def test_workers_an_hour_ahead_and_an_hour_behind_share_the_work_of_several_jobs(crew: Crew) -> None:
    for device, shift_s in SHIFTS_S.items():
        begin_shifted(crew, device, shift_s)
    crew.start_sweeper()
    for device in SHIFTS_S:
        wait_for_start(crew, f"worker-{device.replace(':', '-')}")
    jobs = [crew.plant(n_cycles=2, n_steps=10, seconds=2.0, every=2) for _ in range(N_JOBS)]
    for device, shift_s in SHIFTS_S.items():
        crew.wait_for_trainer(device)
        assert offset_s(crew.log(f"worker-{device.replace(':', '-')}")) == pytest.approx(shift_s, abs=60)
    os.kill(crew.wait_for_trainer("cpu:0"), signal.SIGKILL)
    for job in jobs:
        crew.wait_until(job, "succeeded", seconds=60)
    ended = [outcome for job in jobs for outcome in crew.outcomes(job)]
    assert sorted(ended, key=str) == ["crashed"] + ["succeeded"] * 2 * N_JOBS
    assert sorted(crew.count("end").values()) == [1] * 2 * N_JOBS
    with crew.database.session_scope() as session:
        for moment in (Attempt.opened_at, Attempt.lease_expires_at, Event.created_at):
            off = func.max(func.abs(func.extract("epoch", moment - func.clock_timestamp())))
            assert session.scalars(select(off)).one() < HOUR_S / 2


def test_a_wake_up_of_another_host_is_no_less_heard_by_a_worker_an_hour_ahead(crew: Crew) -> None:
    crew.env["DMSAE_IDLE_WAKE_S"] = "300"
    begin_shifted(crew, "cpu:0", HOUR_S)
    wait_for_start(crew, "worker-cpu-0")
    job = crew.plant()
    assert WakeUps(make_celery(settings_from(crew.env).broker_url)).send_wake_up("cpu")
    crew.wait_until(job, "succeeded", seconds=60)
