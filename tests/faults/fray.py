"""Threads that all want something of the same few jobs at once, each over connections of its own.

The database notes every change of a state, whoever makes it, in the order in which it is made. What must
hold of all that is said in `test_races.py`.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy import select, text

from dmsae.errors import Conflict, Deleted, StaleAttempt
from dmsae.service.cancelling import cancel_job, find_cancelling, finish_cancelling
from dmsae.service.claims import Claim, StoredFile, claim_cycle
from dmsae.service.database import Database
from dmsae.service.deleting import delete_job
from dmsae.service.leases import Report, find_expired, renew, require_open
from dmsae.service.queue_control import change_priority, hold_job, pause_queue, release_job, resume_queue
from dmsae.service.recording import (
    RetryPolicy,
    record_cancelled,
    record_crash,
    record_failure,
    record_hand_back,
    record_success,
)
from dmsae.service.retrying import retry_job
from dmsae.service.sweeping import close_expired
from dmsae.service.tables import FINAL_JOB_STATES, Job
from tests.planting import as_result, make_lineage, plant_job, plant_worker

AUDIT = """
CREATE TABLE moves (number bigserial PRIMARY KEY, kind text, id text, before text, after text, run integer);
CREATE FUNCTION note_move() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    v_state text := CASE TG_TABLE_NAME WHEN 'attempts' THEN 'outcome' ELSE 'state' END;
BEGIN
    INSERT INTO moves (kind, id, before, after, run) VALUES (TG_TABLE_NAME, NEW.id,
        CASE TG_OP WHEN 'UPDATE' THEN coalesce(to_jsonb(OLD)->>v_state, 'open') END,
        coalesce(to_jsonb(NEW)->>v_state, 'open'), (to_jsonb(NEW)->>'run')::integer);
    RETURN NULL;
END $$;
CREATE TRIGGER note_move AFTER UPDATE ON jobs FOR EACH ROW
    WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION note_move();
CREATE TRIGGER note_move AFTER UPDATE ON cycles FOR EACH ROW
    WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION note_move();
CREATE TRIGGER note_move AFTER UPDATE ON attempts FOR EACH ROW
    WHEN (OLD.outcome IS DISTINCT FROM NEW.outcome) EXECUTE FUNCTION note_move();
CREATE TRIGGER note_birth AFTER INSERT ON attempts FOR EACH ROW EXECUTE FUNCTION note_move();
"""
"""Notes each change of a state; the row is locked meanwhile, so numbers follow the order of its changes."""

WRONG = """
SELECT 'a cycle runs without an attempt, or an attempt without its cycle', c.id FROM cycles c
WHERE (c.state = 'running') <>
    (1 = (SELECT count(*) FROM attempts a WHERE a.cycle_id = c.id AND a.outcome IS NULL))
UNION ALL
SELECT 'a job has ended before its cycles', j.id FROM jobs j JOIN cycles c ON c.job_id = j.id
WHERE j.state IN ('succeeded', 'failed', 'cancelled') AND c.state IN ('waiting', 'queued', 'running')
UNION ALL
SELECT 'a job waits or runs with nothing to run', j.id FROM jobs j
WHERE j.state IN ('queued', 'running', 'cancelling')
    AND NOT EXISTS (SELECT FROM cycles c WHERE c.job_id = j.id AND c.state IN ('queued', 'running'))
UNION ALL
SELECT 'a deleted job is alive', j.id FROM jobs j
WHERE j.deleted_at IS NOT NULL AND j.state IN ('queued', 'running', 'cancelling')
"""
"""What no moment may show, told from one snapshot."""

PATIENT = RetryPolicy(max_attempts=50, backoff_s=0, max_in_all=1000)
STRICT = RetryPolicy(max_attempts=2, backoff_s=0)
N_JOBS = 4
N_WORKERS = 4
N_ACTORS = 4
LEASE_S = 0.02
ROUGH_S = 1.5
"""For how long people interfere; then what is left runs to its end."""
LONGEST_S = 30.0


class Fray:
    """A few jobs, and threads that all want something of them."""

    def __init__(self, database_url: str, seed: int) -> None:
        n_connections = N_WORKERS + N_ACTORS + 6
        self.database = Database(database_url, wake_up=lambda _: None, pool_size=n_connections)
        self.seed = seed
        self.is_calm, self.is_over = threading.Event(), threading.Event()
        self.failures: list[BaseException] = []
        self.told: Counter[str] = Counter()
        self.cores: dict[tuple[str, int], list[Any]] = {}
        self.ended: list[Claim] = []
        with self.database.session_scope() as session:
            session.execute(text(AUDIT))
        self.jobs = [self.database.run(lambda s: plant_job(s, "cpu")) for _ in range(N_JOBS)]
        self.workers = [self.database.run(lambda s: plant_worker(s, "cpu")) for _ in range(N_WORKERS)]

    def run(self) -> None:
        """Let all of them loose, then let what is left run to its end."""
        rough = [self.cancel, self.meddle, self.retry, self.delete]
        steady = [self.work] * N_WORKERS + [self.expire, self.expire, self.haunt, self.watch]
        acts = [(act, self.is_calm) for act in rough] + [(act, self.is_over) for act in steady]
        threads = [
            threading.Thread(target=self.guard, args=(act, until, random.Random(self.seed * 100 + i)))
            for i, (act, until) in enumerate(acts)
        ]
        for thread in threads:
            thread.start()
        self.is_calm.wait(ROUGH_S)
        self.is_calm.set()
        for thread in threads[: len(rough)]:
            thread.join(LONGEST_S)
        self.release_all()
        deadline = time.monotonic() + LONGEST_S
        while not self.is_done() and time.monotonic() < deadline and not self.failures:
            time.sleep(0.02)
        self.is_over.set()
        for thread in threads:
            thread.join(LONGEST_S)

    def guard(self, act: Callable[[random.Random], None], until: threading.Event, chance: Any) -> None:
        try:
            while not until.is_set():
                act(chance)
                time.sleep(chance.random() * 0.01)
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            self.failures.append(error)
            self.is_calm.set()

    def release_all(self) -> None:
        """Release what is still held: a job that failed while somebody held it, and was retried."""
        for job_id in self.jobs:
            with suppress(Conflict, Deleted):
                self.database.run(lambda s, job_id=job_id: release_job(s, job_id))

    def is_done(self) -> bool:
        with self.database.session_scope() as session:
            return set(session.scalars(select(Job.state))) <= set(FINAL_JOB_STATES)

    def work(self, chance: random.Random) -> None:
        """Claim, report, and end in one of all ways: often too late."""
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
        self.ended.append(claim)

    def end(self, claim: Claim, chance: random.Random, *, is_cancelling: bool) -> str:
        run = self.database.run
        if is_cancelling:
            return run(lambda s: record_cancelled(s, claim, confirmed_by="supervisor"))
        ends = ("success", "crashed", "hand_back", "failure", "out_of_memory")
        match chance.choices(ends, (6, 2, 2, 0.7, 0.5))[0]:
            case "crashed" | "out_of_memory" as code:
                policy = chance.choice((PATIENT, STRICT))
                return run(lambda s: record_crash(s, claim, code=code, message="x", policy=policy))
            case "hand_back":
                return run(lambda s: record_hand_back(s, claim, reason="x"))
            case "failure":
                return run(lambda s: record_failure(s, claim, code="non_finite", message="x"))
        return self.succeed(claim)

    def succeed(self, claim: Claim) -> str:
        given = self.cores.get((claim.job_id, claim.cycle_index - 1), [])
        lineage = make_lineage(claim, given, kept=list(range(len(given))), new=[50 + claim.cycle_index])
        # Noted before it is recorded: whoever claims the next cycle needs it, and a re-run writes the same.
        self.cores[claim.job_id, claim.cycle_index] = lineage["core"]
        file = StoredFile("core/core.json", f"{claim.object_prefix}core/core.json", 1, "x")
        result = as_result(lineage)
        return self.database.run(lambda s: record_success(s, claim, artifacts=(file,), result=result))

    def cancel(self, chance: random.Random) -> None:
        time.sleep(chance.random() * 0.3)
        job_id = chance.choice(self.jobs[: N_JOBS // 2])
        self.database.run(lambda s: cancel_job(s, job_id))

    def meddle(self, chance: random.Random) -> None:
        """Hold, move and release a job, and pause the queue: the first time one that has not ended yet."""
        job_id = chance.choice(self.jobs) if self.told["meddled"] else self.jobs[N_JOBS // 2]
        try:
            self.database.run(lambda s: hold_job(s, job_id))
            self.told["meddled"] += 1
            self.database.run(lambda s: change_priority(s, job_id, chance.choice(("low", "high"))))
            self.database.run(pause_queue)
            time.sleep(chance.random() * 0.01)
            self.database.run(resume_queue)
            self.database.run(lambda s: release_job(s, job_id))
        except Conflict:
            self.database.run(resume_queue)

    def retry(self, chance: random.Random) -> None:
        job_id = chance.choice(self.jobs)
        try:
            self.told["retried"] += self.database.run(lambda s: retry_job(s, job_id))
        except (Conflict, Deleted):
            self.told["not retried"] += 1

    def delete(self, chance: random.Random) -> None:
        """Delete the last job once it has ended: while others may retry it."""
        time.sleep(chance.random() * 0.1)
        job_id = self.jobs[-1]
        try:
            with self.database.session_scope() as session:
                owner_id = session.scalars(select(Job.owner_id).where(Job.id == job_id)).one()
            self.database.run(lambda s: delete_job(s, job_id, owner_id=owner_id))
            self.told["deleted"] += 1
        except Conflict:
            self.told["not deleted"] += 1

    def expire(self, chance: random.Random) -> None:
        for expired in self.database.run(find_expired):
            if chance.random() < 0.3:
                outcome = self.database.run(lambda s, e=expired: close_expired(s, e, policy=PATIENT))
                self.told[f"expired {outcome}"] += 1
        for job_id in self.database.run(find_cancelling):
            self.database.run(lambda s, job_id=job_id: finish_cancelling(s, job_id))

    def haunt(self, chance: random.Random) -> None:
        """Write for an attempt that is closed: nothing may come of it."""
        if self.ended:
            self.write_stale(chance.choice(self.ended), chance.choice(self.writes()))

    def writes(self) -> list[Callable[[Any, Claim], object]]:
        """Every way to write for an attempt."""
        report = Report(phase="training", progress={"step": 1}, events=({"kind": "x", "message": "x"},))

        def succeed(session: Any, claim: Claim) -> str:
            result = as_result(make_lineage(claim, [], kept=[], new=[1]))
            return record_success(session, claim, artifacts=(), result=result)

        return [
            succeed,
            require_open,
            lambda s, claim: renew(s, claim, lease_s=LEASE_S, report=Report()),
            lambda s, claim: renew(s, claim, lease_s=LEASE_S, report=report),
            lambda s, claim: record_failure(s, claim, code="non_finite", message="stale"),
            lambda s, claim: record_crash(s, claim, code="crashed", message="stale", policy=PATIENT),
            lambda s, claim: record_hand_back(s, claim, reason="stale"),
            lambda s, claim: record_cancelled(s, claim, confirmed_by="supervisor"),
        ]

    def write_stale(self, claim: Claim, write: Callable[[Any, Claim], object]) -> None:
        try:
            self.database.run(lambda s: write(s, claim))
        except StaleAttempt:
            self.told["refused"] += 1
        else:
            raise AssertionError(f"attempt {claim.attempt_id} is closed, and wrote")

    def watch(self, _chance: random.Random) -> None:
        with self.database.session_scope() as session:
            wrong = [tuple(row) for row in session.execute(text(WRONG))]
        assert not wrong, wrong
        self.told["watched"] += 1
