"""kill -9 in the middle of a cycle ends well: the job succeeds, once, and nothing is left running."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from sqlalchemy import func, select

from dmsae.service.cancelling import cancel_job
from dmsae.service.tables import Attempt, Core, CoreLatent, Cycle, Latent
from tests.faults.crew import Crew, in_full, wait_for
from tests.planting import cycle_states, outcomes


def assert_one_lineage(crew: Crew, job_id: str, n_cycles: int) -> None:
    with crew.database.session_scope() as session:
        assert cycle_states(session, job_id) == ["succeeded"] * n_cycles
        cores = session.scalars(select(Core).join(Cycle, Cycle.id == Core.cycle_id)).all()
        assert len(cores) == n_cycles
        for core in cores:
            where = CoreLatent.core_id == core.id
            n_places = session.scalars(select(func.count()).select_from(CoreLatent).where(where)).one()
            assert n_places == core.n_latents
        latents = session.scalars(select(Latent).where(Latent.origin_job_id == job_id)).all()
        assert len({latent.public_id for latent in latents}) == len(latents) == 2 * n_cycles
        assert outcomes(session, job_id).count("succeeded") == n_cycles
        is_open = select(func.count()).select_from(Attempt).where(Attempt.outcome.is_(None))
        assert session.scalars(is_open).one() == 0


def test_two_workers_run_two_jobs_side_by_side_and_each_cycle_once(crew: Crew) -> None:
    jobs = [crew.plant(n_cycles=3, seconds=0.5) for _ in range(2)]
    crew.start_worker("cpu:0")
    crew.start_worker("cpu:1")
    for job_id in jobs:
        crew.wait_until(job_id, "succeeded", seconds=40)
    assert crew.count("begin") == crew.count("end") == {(job, i): 1 for job in jobs for i in range(3)}
    with crew.database.session_scope() as session:
        assert len(set(session.scalars(select(Attempt.worker_id)))) == 2


def test_a_killed_trainer_is_started_again(crew: Crew) -> None:
    job_id = crew.plant(n_cycles=2, seconds=1.5)
    crew.start_worker()
    os.kill(crew.wait_for_trainer(), signal.SIGKILL)
    crew.wait_until(job_id, "succeeded", seconds=40)
    assert_one_lineage(crew, job_id, 2)
    with crew.database.session_scope() as session:
        assert outcomes(session, job_id) == ["crashed", "succeeded", "succeeded"]


@pytest.mark.parametrize("is_whole_group", [False, pytest.param(True, marks=in_full)])
def test_a_killed_worker_takes_its_trainer_along_and_another_run_succeeds(
    crew: Crew, *, is_whole_group: bool
) -> None:
    job_id = crew.plant(n_cycles=2, seconds=1.5)
    crew.start_sweeper()
    worker = crew.start_worker()
    trainer = crew.wait_for_trainer()
    if is_whole_group:
        os.kill(trainer, signal.SIGKILL)
        os.killpg(worker.pid, signal.SIGKILL)
    else:
        os.kill(worker.pid, signal.SIGKILL)
    assert worker.wait(60) == -signal.SIGKILL
    wait_for(lambda: crew.orphans() == [], seconds=60, what="the trainer dies with its supervisor")
    crew.start_worker()
    crew.wait_until(job_id, "succeeded", seconds=40)
    assert_one_lineage(crew, job_id, 2)
    with crew.database.session_scope() as session:
        assert outcomes(session, job_id) == ["crashed", "succeeded", "succeeded"]


def test_a_trainer_that_outlives_its_supervisor_is_killed_before_the_device_is_used_again(
    crew: Crew,
) -> None:
    once = crew.folder / "once"
    job_id = crew.plant(behaviour="undying", once=str(once))
    crew.start_sweeper()
    worker = crew.start_worker()
    trainer = crew.wait_for_trainer()
    wait_for(once.exists, seconds=60, what="the trainer lets go of its parent")
    time.sleep(0.3)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait(60)
    time.sleep(0.5)
    assert psutil.pid_exists(trainer)
    crew.start_worker()
    crew.wait_until(job_id, "succeeded", seconds=40)
    assert trainer not in crew.orphans()
    assert "leftover_trainer_killed" in crew.log("worker-cpu-0")


def test_cancelling_ends_the_whole_group_within_ten_seconds(crew: Crew) -> None:
    job_id = crew.plant(behaviour="stubborn")
    crew.start_worker()
    trainer = crew.wait_for_trainer()
    crew.database.run(lambda session: cancel_job(session, job_id))
    assert crew.wait_until(job_id, "cancelled", seconds=10) < 10
    assert not psutil.pid_exists(trainer)


def test_a_worker_told_to_stop_hands_its_cycle_to_another(crew: Crew, tmp_path: Path) -> None:
    job_id = crew.plant(behaviour="hang", once=str(tmp_path / "once"))
    worker = crew.start_worker("cpu:0")
    crew.wait_for_trainer("cpu:0")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    crew.start_worker("cpu:1")
    crew.wait_until(job_id, "succeeded", seconds=60)
    with crew.database.session_scope() as session:
        assert outcomes(session, job_id) == ["handed_back", "succeeded"]
