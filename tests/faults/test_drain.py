"""A worker that is to end, though nobody sent it a signal: it hands its cycle back in time."""

import signal
import socket
import subprocess
import sys
import time

from sqlalchemy import select

from dmsae.service.tables import Attempt, Checkpoint
from tests.faults.crew import ROOT, Crew, wait_for
from tests.faults.store_proxy import Faults, StoreProxy
from tests.planting import outcomes

MAX_RUNTIME_S = 12.0


def test_a_worker_marked_in_the_database_hands_its_cycle_back_and_ends(crew: Crew) -> None:
    job_id = crew.plant(n_steps=200, seconds=20.0)
    worker = crew.start_worker("cpu:0")
    crew.wait_for_trainer("cpu:0")
    command = [sys.executable, "-m", "dmsae.cli", "worker", "--drain", "--device", "cpu:0"]
    told = subprocess.run(command, env=crew.env, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"{socket.gethostname()}.cpu-0" in told
    assert worker.wait(60) == 0
    with crew.database.session_scope() as session:
        assert outcomes(session, job_id) == ["handed_back"]
    other = crew.start_worker("cpu:1")
    crew.wait_for_trainer("cpu:1")
    assert other.poll() is None
    with crew.database.session_scope() as session:
        assert outcomes(session, job_id) == ["handed_back", None]


def test_a_worker_whose_time_is_up_hands_its_cycle_back_before_the_end(crew: Crew) -> None:
    crew.env["DMSAE_DRAIN_GRACE_S"] = "2"
    job_id = crew.plant(n_steps=1000, seconds=100.0)
    worker = crew.start_worker(max_runtime_s=MAX_RUNTIME_S)
    crew.wait_for_trainer()
    assert worker.wait(60) == 0
    with crew.database.session_scope() as session:
        assert outcomes(session, job_id) == ["handed_back"]
        took = session.scalars(select(Attempt.closed_at - Attempt.opened_at)).one()
        assert took is not None
        assert took.total_seconds() < MAX_RUNTIME_S


def test_a_worker_told_to_stop_while_it_stores_a_finished_cycle_records_it(
    crew: Crew, proxy: StoreProxy
) -> None:
    crew.env["DMSAE_DRAIN_GRACE_S"] = "20"
    proxy.faults = Faults(delay_s=0.2)
    worker = crew.start_worker()
    job_id = crew.plant()
    crew.wait_for_phase(job_id, "uploading")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert crew.outcomes(job_id) == ["succeeded"]
    assert crew.state(job_id) == "succeeded"


def test_a_finished_cycle_that_cannot_be_stored_in_time_goes_on_from_its_last_checkpoint(
    crew: Crew, proxy: StoreProxy
) -> None:
    crew.env["DMSAE_DRAIN_GRACE_S"] = "1"
    worker = crew.start_worker("cpu:0")
    job_id = crew.plant(n_steps=10, every=2, seconds=2.0)
    crew.wait_for_phase(job_id, "training")
    wait_for(lambda: newest_step(crew) > 0, seconds=60, what="a checkpoint is stored")
    proxy.faults = Faults(is_away=True)
    crew.wait_for_phase(job_id, "uploading")
    begun = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert time.monotonic() - begun < 20
    assert crew.outcomes(job_id) == ["handed_back"]
    proxy.faults = Faults()
    last = newest_step(crew)
    crew.start_worker("cpu:1")
    crew.wait_until(job_id, "succeeded", seconds=60)
    assert crew.outcomes(job_id) == ["handed_back", "succeeded"]
    assert crew.resumed_steps(job_id) == [last]


def newest_step(crew: Crew) -> int:
    with crew.database.session_scope() as session:
        usable = select(Checkpoint.step).where(Checkpoint.superseded_at.is_(None))
        return max(session.scalars(usable), default=0)
