"""What the sweeper closes, and what it leaves alone, by a clock of its own that goes on when told."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from dmsae.service.cancelling import cancel_job
from dmsae.service.claims import Claim, claim_cycle
from dmsae.service.database import Database
from dmsae.service.leases import Report, renew
from dmsae.service.queue import WakeUps
from dmsae.service.settings import Settings
from dmsae.service.tables import Attempt, Cycle, Worker
from tests.planting import cycle_states, job_state, outcomes, plant_job, plant_worker
from tests.worker_bench import wait_for
from worker.sweeper import Sweeper

LEASE_S = 10.0
SWEEP_S = 60.0
"""For how long a cycle must have waited: longer than a test takes."""


class RecordedWakeUps(WakeUps):
    """Remembers whom it would have woken."""

    n_failed = 0

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send_wake_up(self, resource_class: str) -> bool:
        self.sent.append(resource_class)
        return True


class Clock:
    """What the sweeper takes for `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Bench:
    """A sweeper, and one claimed cycle."""

    def __init__(self, settings: Settings, database: Database, clock: Clock) -> None:
        self.settings = settings.model_copy(update={"lease_s": LEASE_S, "sweep_s": 0.2, "retry_backoff_s": 0})
        self.database = database
        self.clock = clock
        self.wake_ups = RecordedWakeUps()
        self.sweeper = self.another()

    def another(self) -> Sweeper:
        return Sweeper(self.settings, self.database, self.wake_ups)

    def claim(self) -> Claim:
        with self.database.session_scope() as session:
            worker_id = plant_worker(session, "cpu")
            plant_job(session, "cpu")
            claim = claim_cycle(
                session, worker_id=worker_id, resource_class="cpu", lease_s=LEASE_S, celery_task_id=None
            )
        assert claim is not None
        return claim

    def expire(self, claim: Claim) -> None:
        """Let the lease of an attempt have run out by the database's clock."""
        over = func.clock_timestamp() - timedelta(seconds=1)
        change = update(Attempt).where(Attempt.id == claim.attempt_id).values(lease_expires_at=over)
        self.database.run(lambda session: session.execute(change))

    def sweep_for(self, seconds: float) -> None:
        """Sweep ten times a lease, for so long by the sweeper's clock."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now += LEASE_S / 10
            assert self.sweeper.sweep()

    def states(self, claim: Claim) -> tuple[str, str, list[str | None]]:
        with self.database.session_scope() as session:
            job_id = claim.job_id
            return job_state(session, job_id), cycle_states(session, job_id)[0], outcomes(session, job_id)


@pytest.fixture
def bench(settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    clock = Clock()
    monkeypatch.setattr("worker.sweeper.time", clock)
    bench = Bench(settings, database, clock)
    yield bench
    bench.sweeper.resign()


def test_an_attempt_is_closed_only_after_one_whole_lease_of_watching(bench: Bench) -> None:
    claim = bench.claim()
    bench.expire(claim)
    bench.sweep_for(LEASE_S * 0.8)
    assert bench.states(claim) == ("running", "running", [None])
    bench.sweep_for(LEASE_S * 0.4)
    assert bench.states(claim) == ("running", "queued", ["crashed"])


def test_an_attempt_that_is_renewed_lives(bench: Bench) -> None:
    claim = bench.claim()
    for _ in range(4):
        bench.expire(claim)
        bench.sweep_for(LEASE_S * 0.8)
        bench.database.run(lambda session: renew(session, claim, lease_s=LEASE_S, report=Report()))
    assert bench.states(claim) == ("running", "running", [None])


def test_a_gap_in_the_watching_begins_it_anew(bench: Bench) -> None:
    claim = bench.claim()
    bench.expire(claim)
    bench.sweep_for(LEASE_S * 0.6)
    bench.clock.now += LEASE_S * 3
    assert bench.sweeper.sweep()
    assert bench.states(claim) == ("running", "running", [None])


def test_a_cancelling_job_whose_worker_is_gone_ends_as_cancelled(bench: Bench) -> None:
    claim = bench.claim()
    bench.database.run(lambda session: cancel_job(session, claim.job_id))
    bench.expire(claim)
    bench.sweep_for(LEASE_S * 1.5)
    assert bench.states(claim) == ("cancelled", "cancelled", ["cancelled"])


def test_only_one_replica_acts_and_another_takes_over(bench: Bench) -> None:
    other = bench.another()
    assert bench.sweeper.sweep()
    assert not other.sweep()
    bench.sweeper.resign()
    wait_for(other.sweep, seconds=60)  # the server has to notice first that the connection is gone
    assert not bench.sweeper.sweep()
    other.resign()


def test_a_class_with_waiting_cycles_is_woken_once_a_sweep(bench: Bench) -> None:
    bench.settings = bench.settings.model_copy(update={"sweep_s": SWEEP_S})
    bench.sweeper = bench.another()
    bench.database.run(lambda session: plant_job(session, "cpu"))
    bench.database.run(lambda session: plant_job(session, "cpu"))
    held = bench.database.run(lambda session: plant_job(session, "gpu", held=True))
    assert bench.sweeper.sweep()
    assert bench.wake_ups.sent == []
    with bench.database.session_scope() as session:
        past = func.clock_timestamp() - timedelta(seconds=2 * SWEEP_S)
        session.execute(update(Cycle).where(Cycle.state == "queued").values(queued_at=past))
        assert job_state(session, held) == "queued"
    assert bench.sweeper.sweep()
    assert bench.wake_ups.sent == ["cpu"]


def test_workers_not_seen_for_long_are_noted_as_gone(bench: Bench) -> None:
    with bench.database.session_scope() as session:
        there, gone = plant_worker(session, "cpu"), plant_worker(session, "cpu")
        long_ago = func.clock_timestamp() - timedelta(hours=1)
        session.execute(update(Worker).where(Worker.id == gone).values(last_seen_at=long_ago))
    assert bench.sweeper.sweep()
    with bench.database.session_scope() as session:
        stopped = session.scalars(select(Worker.id).where(Worker.stopped_at.is_not(None))).all()
    assert stopped == [gone]
    assert there != gone


def test_a_step_that_crashes_keeps_no_lease_from_being_watched(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyError("an owner")

    monkeypatch.setattr("worker.sweeper.take_snapshots", crash)
    claim = bench.claim()
    bench.expire(claim)
    for _ in range(12):
        bench.clock.now += LEASE_S / 10
        assert not bench.sweeper.sweep()
    assert bench.states(claim) == ("running", "queued", ["crashed"])
