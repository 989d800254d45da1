"""Claims, renewals, results, crashes, expiries and cancellations all at once, over connections of their own.

Whatever the order in which they arrive, every job ends in one state, reached once, with one lineage. The
database itself notes every change of a state, and each must be one that `states.py` allows.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select, text

from dmsae.errors import Conflict, StaleAttempt
from dmsae.service.cancelling import cancel_job, find_cancelling, finish_cancelling
from dmsae.service.claims import Claim, StoredFile, claim_cycle
from dmsae.service.database import Database
from dmsae.service.leases import Report, find_expired, renew
from dmsae.service.queue_control import (
    change_priority,
    hold_job,
    pause_queue,
    release_job,
    resume_queue,
)
from dmsae.service.recording import (
    RetryPolicy,
    record_cancelled,
    record_crash,
    record_failure,
    record_hand_back,
    record_success,
)
from dmsae.service.states import CYCLE_MOVES, JOB_MOVES
from dmsae.service.sweeping import close_expired
from dmsae.service.tables import FINAL_JOB_STATES, OUTCOMES, Attempt, Core, Cycle, Event, Job
from tests.planting import (
    as_result,
    cycle_states,
    event_kinds,
    make_lineage,
    outcomes,
    plant_job,
    plant_worker,
)

AUDIT = """
CREATE TABLE moves (kind text, id text, before text, after text);
CREATE FUNCTION note_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO moves VALUES (TG_TABLE_NAME, NEW.id,
        CASE TG_TABLE_NAME WHEN 'attempts' THEN coalesce(to_jsonb(OLD)->>'outcome', 'open')
            ELSE to_jsonb(OLD)->>'state' END,
        CASE TG_TABLE_NAME WHEN 'attempts' THEN coalesce(to_jsonb(NEW)->>'outcome', 'open')
            ELSE to_jsonb(NEW)->>'state' END);
    RETURN NULL;
END $$;
CREATE TRIGGER note_move AFTER UPDATE ON jobs FOR EACH ROW
    WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION note_move();
CREATE TRIGGER note_move AFTER UPDATE ON cycles FOR EACH ROW
    WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION note_move();
CREATE TRIGGER note_move AFTER UPDATE ON attempts FOR EACH ROW
    WHEN (OLD.outcome IS DISTINCT FROM NEW.outcome) EXECUTE FUNCTION note_move();
"""
"""Notes each change of a state, whoever makes it."""

POLICY = RetryPolicy(max_attempts=4, backoff_s=0)
N_JOBS = 4
N_WORKERS = 4
LEASE_S = 0.02
JOB_ENDS = {"job_succeeded", "job_failed", "job_cancelled"}


class Fray:
    """A few jobs, and threads that all want something of them."""

    def __init__(self, database_url: str, seed: int) -> None:
        self.database = Database(database_url, wake_up=lambda _: None, pool_size=N_WORKERS + 4)
        self.seed = seed
        self.is_over = threading.Event()
        self.failures: list[BaseException] = []
        self.told: Counter[str] = Counter()
        self.cores: dict[tuple[str, int], list[Any]] = {}
        with self.database.session_scope() as session:
            session.execute(text(AUDIT))
        self.jobs = [self.database.run(lambda s: plant_job(s, "cpu")) for _ in range(N_JOBS)]
        self.workers = [self.database.run(lambda s: plant_worker(s, "cpu")) for _ in range(N_WORKERS)]

    def run(self) -> None:
        acts = [self.work] * N_WORKERS + [self.cancel, self.expire, self.expire, self.meddle]
        threads = [
            threading.Thread(target=self.guard, args=(act, random.Random(self.seed * 100 + i)))
            for i, act in enumerate(acts)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while not self.is_done() and time.monotonic() < deadline and not self.failures:
            time.sleep(0.02)
        self.is_over.set()
        for thread in threads:
            thread.join(10)
        self.database.dispose()

    def guard(self, act: Callable[[random.Random], None], chance: random.Random) -> None:
        try:
            while not self.is_over.is_set():
                act(chance)
                time.sleep(chance.random() * 0.01)
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            self.failures.append(error)

    def is_done(self) -> bool:
        with self.database.session_scope() as session:
            return set(session.scalars(select(Job.state))) <= set(FINAL_JOB_STATES)

    def work(self, chance: random.Random) -> None:
        worker_id = chance.choice(self.workers)
        claim = self.database.run_alone(
            lambda s: claim_cycle(
                s, worker_id=worker_id, resource_class="cpu", lease_s=LEASE_S, celery_task_id=None
            )
        )
        if claim is None:
            return
        time.sleep(chance.random() * 2 * LEASE_S)
        try:
            report = Report(phase="training")
            state = self.database.run(lambda s: renew(s, claim, lease_s=LEASE_S, report=report))
            time.sleep(chance.random() * LEASE_S)
            self.told[self.end(claim, chance, is_cancelling=state.is_cancelling)] += 1
        except StaleAttempt:
            self.told["stale"] += 1

    def end(self, claim: Claim, chance: random.Random, *, is_cancelling: bool) -> str:
        run = self.database.run
        if is_cancelling:
            return run(lambda s: record_cancelled(s, claim, confirmed_by="supervisor"))
        match chance.choices(("success", "crash", "hand_back", "failure"), (6, 2, 2, 0.3))[0]:
            case "crash":
                return run(lambda s: record_crash(s, claim, code="crashed", message="x", policy=POLICY))
            case "hand_back":
                return run(lambda s: record_hand_back(s, claim, reason="x"))
            case "failure":
                return run(lambda s: record_failure(s, claim, code="out_of_memory", message="x"))
        given = self.cores.get((claim.job_id, claim.cycle_index - 1), [])
        lineage = make_lineage(claim, given, kept=list(range(len(given))), new=[50 + claim.cycle_index])
        # Noted before it is recorded: whoever claims the next cycle needs it, and a re-run writes the same.
        self.cores[claim.job_id, claim.cycle_index] = lineage["core"]
        file = StoredFile("core/core.json", f"{claim.object_prefix}core/core.json", 1, "x")
        result = as_result(lineage)
        return run(lambda s: record_success(s, claim, artifacts=(file,), result=result))

    def cancel(self, chance: random.Random) -> None:
        time.sleep(chance.random() * 0.3)
        job_id = chance.choice(self.jobs[: N_JOBS // 2])
        self.database.run(lambda s: cancel_job(s, job_id))

    def meddle(self, chance: random.Random) -> None:
        job_id = chance.choice(self.jobs)
        try:
            self.database.run(lambda s: hold_job(s, job_id))
            self.database.run(lambda s: change_priority(s, job_id, chance.choice(("low", "high"))))
            self.database.run(pause_queue)
            time.sleep(chance.random() * 0.01)
            self.database.run(resume_queue)
            self.database.run(lambda s: release_job(s, job_id))
            self.told["meddled"] += 1
        except Conflict:
            self.database.run(resume_queue)

    def expire(self, chance: random.Random) -> None:
        for expired in self.database.run(find_expired):
            if chance.random() < 0.3:
                outcome = self.database.run(lambda s, e=expired: close_expired(s, e, policy=POLICY))
                self.told[f"expired {outcome}"] += 1
        for job_id in self.database.run(find_cancelling):
            self.database.run(lambda s, job_id=job_id: finish_cancelling(s, job_id))


@pytest.mark.parametrize("seed", range(4))
def test_every_job_ends_once_whatever_happens_at_once(database_url: str, seed: int) -> None:
    fray = Fray(database_url, seed)
    fray.run()
    assert fray.failures == []
    assert fray.told["succeeded"] > 0
    assert fray.told["expired None"] + fray.told["stale"] > 0, "nothing raced"
    assert fray.told["meddled"] > 0
    assert_only_allowed_moves(fray.database)
    for job_id in fray.jobs:
        assert_ended_once(fray.database, job_id)
    fray.database.dispose()


def assert_only_allowed_moves(database: Database) -> None:
    with database.session_scope() as session:
        moves = {tuple(row) for row in session.execute(text("SELECT kind, before, after FROM moves"))}
    allowed = {("jobs", before, after) for after, froms in JOB_MOVES.items() for before in froms}
    allowed |= {("cycles", before, after) for after, froms in CYCLE_MOVES.items() for before in froms}
    allowed |= {("attempts", "open", outcome) for outcome in OUTCOMES}
    assert moves <= allowed
    assert ("jobs", "queued", "running") in moves
    assert not any(before in (*FINAL_JOB_STATES, *OUTCOMES) for _, before, _ in moves)


def assert_ended_once(database: Database, job_id: str) -> None:
    with database.session_scope() as session:
        job = session.get_one(Job, job_id)
        states, ends = cycle_states(session, job_id), outcomes(session, job_id)
        seqs = session.scalars(select(Event.seq).where(Event.job_id == job_id).order_by(Event.seq)).all()
        kinds = event_kinds(session, job_id)
        cores = select(func.count()).select_from(Core).join(Cycle, Cycle.id == Core.cycle_id)
        n_cores = session.scalars(cores.where(Cycle.job_id == job_id)).one()
        won = select(func.count()).join(Cycle, Cycle.id == Attempt.cycle_id).where(Cycle.job_id == job_id)
        n_won = session.scalars(
            won.select_from(Attempt).where(Attempt.outcome == "succeeded").group_by(Cycle.id)
        ).all()
    assert job.state in FINAL_JOB_STATES
    assert list(seqs) == list(range(1, len(seqs) + 1))
    assert job.event_seq == len(seqs)
    assert [kind for kind in kinds if kind in JOB_ENDS] == [f"job_{job.state}"]
    assert kinds.count("job_cancelling") == (job.state == "cancelled")
    assert None not in ends
    assert set(n_won) <= {1}
    assert n_cores == states.count("succeeded") == ends.count("succeeded")
    allowed = {
        "succeeded": {"succeeded"},
        "failed": {"succeeded", "failed", "skipped"},
        "cancelled": {"succeeded", "cancelled", "skipped"},
    }
    assert set(states) <= allowed[job.state]
    assert states == sorted(states, key=["succeeded", "failed", "cancelled", "skipped"].index)
