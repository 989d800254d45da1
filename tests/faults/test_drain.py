"""A worker that is to end, though nobody sent it a signal: it hands its cycle back in time."""

import socket
import subprocess
import sys
import time

from tests.faults.crew import ROOT, Crew
from tests.planting import outcomes


def test_a_worker_marked_in_the_database_hands_its_cycle_back_and_ends(crew: Crew) -> None:
    job_id = crew.plant(n_steps=200, seconds=20.0)
    worker = crew.start_worker("cpu:0")
    crew.wait_for_trainer("cpu:0")
    command = [sys.executable, "-m", "dmsae.cli", "worker", "--drain", "--device", "cpu:0"]
    told = subprocess.run(command, env=crew.env, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"{socket.gethostname()}.cpu-0" in told
    assert worker.wait(20) == 0
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
    begun = time.monotonic()
    worker = crew.start_worker(max_runtime_s=12.0)
    crew.wait_for_trainer()
    assert worker.wait(20) == 0
    assert time.monotonic() - begun < 14
    with crew.database.session_scope() as session:
        assert outcomes(session, job_id) == ["handed_back"]
