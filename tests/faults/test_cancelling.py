"""A job can be cancelled in every moment: `cancelling` at once, soon cancelled; nothing is started after."""

import os
import signal
import time

import psutil
import pytest
from sqlalchemy import select

from dmsae.service.cancelling import cancel_job
from dmsae.service.queue_control import hold_job, release_job
from dmsae.service.tables import Artifact, Event
from tests.faults.crew import Crew, in_full, wait_for
from tests.faults.store_proxy import Faults, StoreProxy
from tests.planting import cycle_states, event_kinds

WITHIN_S = 30.0
AWAY = Faults(is_away=True)
SILENT = Faults(delay_s=600.0)


def cancel(crew: Crew, job_id: str) -> None:
    crew.database.run(lambda session: cancel_job(session, job_id))


def assert_cancelled(crew: Crew, job_id: str, *, confirmed_by: str | None) -> None:
    """Cancel a job that runs: it ends within 30 s, once, and stays ended; no trainer of it is left."""
    before = crew.count("begin")
    begun = time.monotonic()
    cancel(crew, job_id)
    assert crew.state(job_id) in ("cancelling", "cancelled")
    cancel(crew, job_id)
    crew.wait_until(job_id, "cancelled", seconds=WITHIN_S)
    assert time.monotonic() - begun < WITHIN_S
    cancel(crew, job_id)
    with crew.database.session_scope() as session:
        kinds = event_kinds(session, job_id)
        assert (kinds.count("job_cancelling"), kinds.count("job_cancelled")) == (1, 1)
        told = select(Event.data).where(Event.job_id == job_id, Event.kind == "job_cancelled")
        assert (session.scalars(told).one() or {}).get("confirmed_by") == confirmed_by
        assert set(cycle_states(session, job_id)) <= {"succeeded", "cancelled", "skipped"}
    assert crew.count("begin")[job_id, 0] == before[job_id, 0]
    assert crew.count("begin")[job_id, 1] == before[job_id, 1]
    assert None not in crew.outcomes(job_id)


def test_while_it_waits_loads_or_trains(crew: Crew) -> None:
    alone = crew.plant()
    cancel(crew, alone)
    assert crew.state(alone) == "cancelled"
    crew.start_worker()
    for fake in ({"behaviour": "hang"}, {"n_steps": 1000, "seconds": 100.0, "every": 1}):
        running = crew.plant(**fake)
        crew.wait_for_phase(running, "loading" if "behaviour" in fake else "training")
        queued = crew.plant()
        assert_cancelled(crew, queued, confirmed_by=None)
        assert_cancelled(crew, running, confirmed_by="supervisor")
        assert crew.orphans() == []
    crew.wait_until(crew.plant(), "succeeded", seconds=20)
    assert crew.count("begin")[alone, 0] == 0


@pytest.mark.parametrize("faults", [AWAY, pytest.param(SILENT, marks=in_full)], ids=["away", "silent"])
def test_while_the_store_does_not_answer(crew: Crew, proxy: StoreProxy, faults: Faults) -> None:
    crew.start_worker()
    job_id = crew.plant(seconds=1.0)
    crew.wait_for_trainer()
    proxy.faults = faults
    crew.wait_for_phase(job_id, "uploading")
    time.sleep(1)
    assert_cancelled(crew, job_id, confirmed_by="supervisor")
    with crew.database.session_scope() as session:
        assert session.scalars(select(Artifact.object_key)).all() == []

    proxy.faults = Faults()
    job_id = crew.plant(n_cycles=2, seconds=1.0)
    crew.wait_for_phase(job_id, "training")
    crew.database.run(lambda session: hold_job(session, job_id))
    wait_for(lambda: crew.outcomes(job_id) == ["succeeded"], seconds=20, what="its first cycle ends")
    proxy.faults = faults
    n_calls = proxy.told["away"] + proxy.told["delayed"]
    crew.database.run(lambda session: release_job(session, job_id))
    wait_for(
        lambda: proxy.told["away"] + proxy.told["delayed"] > n_calls, seconds=20, what="it asks for its core"
    )
    assert_cancelled(crew, job_id, confirmed_by="supervisor")
    assert crew.outcomes(job_id) == ["succeeded", "cancelled"]
    assert crew.count("begin")[job_id, 1] == 0


def test_while_its_worker_drains(crew: Crew) -> None:
    crew.env["DMSAE_DRAIN_GRACE_S"] = "20"
    worker = crew.start_worker()
    job_id = crew.plant(n_steps=2, seconds=200.0)
    crew.wait_for_phase(job_id, "training")
    worker.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert worker.poll() is None
    assert_cancelled(crew, job_id, confirmed_by="supervisor")
    assert worker.wait(10) == 0


def test_after_its_host_was_lost(crew: Crew) -> None:
    crew.start_sweeper()
    worker = crew.start_worker("cpu:0")
    job_id = crew.plant(n_cycles=2, n_steps=1000, seconds=100.0)
    trainer = crew.wait_for_trainer("cpu:0")
    os.killpg(worker.pid, signal.SIGKILL)
    os.kill(trainer, signal.SIGKILL)
    worker.wait(5)
    crew.begin_worker("cpu:1")
    assert_cancelled(crew, job_id, confirmed_by="lease")
    assert not psutil.pid_exists(trainer)
    crew.wait_until(crew.plant(), "succeeded", seconds=20)
