"""Real cycles, killed at random moments or handed back: the same bits, once, from where they had got to.

`DMSAE_FAULT_KILLS` says how many kills (`make faults`: 200), `DMSAE_FAULT_SEED` which moments.
"""

import os
import random
import signal
import time
from contextlib import closing
from typing import Any, NamedTuple

import pytest
from sqlalchemy import func, select

from dmsae.service.objects import ObjectStore
from dmsae.service.settings import settings_from
from dmsae.service.tables import Attempt, Checkpoint, Cycle, MetricPoint
from tests.faults.crew import IS_FULL, RealCrew, in_full, wait_for
from tests.planting import outcomes
from tests.tiny import tiny_config, uncompiled_config

N_KILLS = int(os.environ.get("DMSAE_FAULT_KILLS", "3"))
N_CYCLES = 1 if N_KILLS < 20 else 2
SEED = int(os.environ.get("DMSAE_FAULT_SEED", "0"))
DEVICES = ("cpu:0", "cpu:1", "cpu:2")[: 2 if N_KILLS < 20 else 3]
"""Of many kills, one more than there are cores: somebody works while others start again."""
VICTIMS = ("trainer", "supervisor", "worker")
LONGEST_S = 6.0 / len(DEVICES)
"""Kills fall anywhere within so long after the one before: on each device, as long as a small cycle takes."""


def small_config(crew: RealCrew) -> dict[str, Any]:
    """Give the settings of cycles that train for a second or two each, in full by the fast step."""
    training = {"n_tokens": 196_608, "epochs": 6}
    model = crew.folder / "models" / "tiny"
    make_config = tiny_config if IS_FULL else uncompiled_config
    return make_config(model, n_cycles=N_CYCLES, training=training)


def n_points(crew: RealCrew, job_id: str) -> int:
    where = Cycle.job_id == job_id
    query = select(func.count()).select_from(MetricPoint).join(Cycle, Cycle.id == MetricPoint.cycle_id)
    with crew.database.session_scope() as session:
        return session.scalars(query.where(where)).one()


def assert_steps_told_once(crew: RealCrew, job_id: str) -> None:
    """No step of an earlier attempt stands behind one of a later attempt."""
    with crew.database.session_scope() as session:
        query = select(MetricPoint.fence).join(Cycle, Cycle.id == MetricPoint.cycle_id)
        query = query.where(Cycle.job_id == job_id).order_by(Cycle.index, MetricPoint.step)
        fences = session.scalars(query).all()
    assert fences == sorted(fences)


class Killer:
    """Kills trainers, supervisors and whole workers, and starts again what it killed."""

    def __init__(self, crew: RealCrew) -> None:
        self._crew, self._random = crew, random.Random(SEED)
        self._workers = {device: crew.begin_worker(device) for device in DEVICES}
        self.victims: list[str] = []

    @property
    def n_killed(self) -> int:
        return len(self.victims)

    def kill(self) -> None:
        """Wait a random while, then kill somebody who works, if anybody does.

        Every other one has left a checkpoint: else most kills would hit trainers that only begin.
        """
        time.sleep(self._random.uniform(0, LONGEST_S))
        if self.n_killed % 2 == 0:
            self._wait_for_checkpoint()
        working = {device: pid for device in DEVICES if (pid := self._trainer(device)) is not None}
        further = {device: pid for device, pid in working.items() if self._has_checkpoint(device)}
        if not working:
            return
        device, trainer = self._random.choice(sorted((further or working).items()))
        victim, worker = VICTIMS[self.n_killed % len(VICTIMS)], self._workers[device]
        if victim == "worker":
            os.killpg(worker.pid, signal.SIGKILL)
        elif victim == "supervisor":
            os.kill(worker.pid, signal.SIGKILL)
        if victim != "supervisor":
            os.kill(trainer, signal.SIGKILL)
        self.victims.append(victim)
        if victim != "trainer":
            worker.wait(10)
            self._workers[device] = self._crew.begin_worker(device)

    def _wait_for_checkpoint(self) -> None:
        """Wait until somebody who works has left a checkpoint, and a moment longer."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and any(map(self._trainer, DEVICES)):
            if any(map(self._has_checkpoint, DEVICES)):
                time.sleep(self._random.uniform(0, 0.5))
                return
            time.sleep(0.05)

    def _has_checkpoint(self, device: str) -> bool:
        with self._crew.database.session_scope() as session:
            query = select(Checkpoint.step).join(Attempt, Attempt.id == Checkpoint.attempt_id)
            query = query.where(Attempt.outcome.is_(None), Checkpoint.superseded_at.is_(None))
            query = query.where(Attempt.worker_id.endswith(device.replace(":", "-")))
            return session.scalar(query.limit(1)) is not None

    def _trainer(self, device: str) -> int | None:
        """Give the pid of the trainer of a device, if it lives."""
        pid = self._crew.trainer(device)
        return pid if pid in self._crew.orphans() else None


class Never(NamedTuple):
    """What a job that was never disturbed left."""

    config: dict[str, Any]
    weights: dict[tuple[int, str], str]
    lineage: list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def never(real_crew: RealCrew) -> Never:
    config = small_config(real_crew)
    worker, job_id = real_crew.start_worker("cpu:0"), real_crew.plant_real(config)
    real_crew.wait_until(job_id, "succeeded", seconds=180)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    return Never(config, real_crew.weights(job_id), real_crew.lineage(job_id))


def assert_same(crew: RealCrew, job_id: str, never: Never) -> None:
    assert len(never.weights) == 3 * N_CYCLES
    assert crew.weights(job_id) == never.weights
    assert len(never.lineage) >= N_CYCLES
    assert crew.lineage(job_id) == never.lineage
    assert_steps_told_once(crew, job_id)


@pytest.mark.slow
@in_full
def test_a_worker_told_to_stop_leaves_its_cycle_in_the_middle_to_another(
    real_crew: RealCrew, never: Never
) -> None:
    worker, job_id = real_crew.start_worker("cpu:0"), real_crew.plant_real(never.config)
    wait_for(lambda: n_points(real_crew, job_id) > 0, seconds=60, what="it trains")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    with real_crew.database.session_scope() as session:
        assert outcomes(session, job_id)[0] == "handed_back"
    other = real_crew.start_worker("cpu:1")
    real_crew.wait_until(job_id, "succeeded", seconds=180)
    assert real_crew.resumed_steps(job_id)[0] > 0
    assert_same(real_crew, job_id, never)
    other.send_signal(signal.SIGTERM)
    assert other.wait(30) == 0


@pytest.mark.slow
@pytest.mark.timeout(300 + 40 * N_KILLS)
def test_jobs_killed_at_random_moments_end_with_the_bits_of_one_that_never_was(
    real_crew: RealCrew, never: Never
) -> None:
    real_crew.start_sweeper()
    killer, jobs = Killer(real_crew), list[str]()
    while killer.n_killed < N_KILLS:
        if all(real_crew.state(job) == "succeeded" for job in jobs):
            jobs += [real_crew.plant_real(never.config) for _ in DEVICES]
        killer.kill()
    for job in jobs:
        real_crew.wait_until(job, "succeeded", seconds=300)

    for job in jobs:
        assert_same(real_crew, job, never)
    with real_crew.database.session_scope() as session:
        ended = [outcome for job in jobs for outcome in outcomes(session, job)]
    assert sorted(set(ended)) == ["crashed", "succeeded"]
    assert ended.count("succeeded") == N_CYCLES * len(jobs)
    assert 1 <= ended.count("crashed") <= N_KILLS
    assert len(killer.victims) == N_KILLS
    assert any(step > 0 for job in jobs for step in real_crew.resumed_steps(job))
    with closing(ObjectStore(settings_from(real_crew.env))) as store:
        assert store.abandon_uploads("jobs/") == 0
