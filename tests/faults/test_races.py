"""Claims, renewals, results, crashes, expiries, retries, cancellations and deletions all at once.

Whatever the order in which they arrive, every change of a state is one that `states.py` draws, no final state
is lost, at most one attempt is open, and whoever comes too late changes nothing. `make faults` tries many
more orders. `DMSAE_FAULT_SEED` says with which the random ones begin.
"""

import os
import re
from collections import defaultdict
from typing import Any

import pytest
from sqlalchemy import func, select, text

from dmsae.service.database import Database
from dmsae.service.states import CYCLE_MOVES, FINAL_CYCLE_STATES, JOB_MOVES
from dmsae.service.tables import FINAL_JOB_STATES, OUTCOMES, Attempt, Core, Cycle, Event, Job
from tests.faults.crew import IS_FULL
from tests.faults.fray import Fray
from tests.planting import cycle_states, event_kinds, outcomes

FIRST_SEED = int(os.environ.get("DMSAE_FAULT_SEED", "0"))
SEEDS = range(FIRST_SEED, FIRST_SEED + (60 if IS_FULL else 3))
ALLOWED = {
    "jobs": {(before, after) for after, froms in JOB_MOVES.items() for before in froms},
    "cycles": {(before, after) for after, froms in CYCLE_MOVES.items() for before in froms},
    "attempts": {(None, "open"), *(("open", outcome) for outcome in OUTCOMES)},
}
"""What `states.py` draws, and that an attempt is closed once."""
BY_RETRY = {("jobs", "failed", "queued"), ("cycles", "failed", "queued"), ("cycles", "skipped", "waiting")}
"""The only ways out of a final state."""
NOTED = ("jobs", "cycles", "attempts", "events", "cores", "artifacts", "checkpoints", "metric_points")
FINAL_STATES = {*FINAL_JOB_STATES, *FINAL_CYCLE_STATES}
CONTENTS = "SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {} t"
JOB_END = re.compile(r"(job_failed job_retried )*(job_succeeded|job_failed|job_cancelling job_cancelled)")
"""What of a job's life its events tell in order, but for its beginning."""


@pytest.mark.parametrize("seed", SEEDS)
def test_every_job_ends_once_whatever_happens_at_once(database_url: str, seed: int) -> None:
    fray = Fray(database_url, seed)
    try:
        fray.run()
        assert fray.failures == []
        assert fray.told["succeeded"] > 0
        assert fray.told["expired None"] + fray.told["stale"] > 0, "nothing raced"
        for what in ("meddled", "refused", "watched"):
            assert fray.told[what] > 0, f"nobody {what}"
        assert_moves_are_drawn(fray.database)
        for job_id in fray.jobs:
            assert_ended_once(fray.database, job_id)
        assert_late_writes_change_nothing(fray)
    finally:
        fray.database.dispose()


def assert_moves_are_drawn(database: Database) -> None:
    """Follow each row through its states: every step is drawn, and only a retry leaves a final state."""
    with database.session_scope() as session:
        moves = session.execute(text("SELECT * FROM moves ORDER BY number")).all()
        runs = {row.id: row.run for row in session.execute(select(Job.id, Job.run))}
    at: dict[str, str | None] = defaultdict(lambda: None)
    run: dict[str, int] = defaultdict(lambda: 1)
    for move in moves:
        step = (move.before, move.after)
        assert step in ALLOWED[move.kind], f"{move.kind} {move.id}: {step}"
        assert move.kind == "attempts" or at[move.id] in (None, move.before), f"a state of {move.id} was lost"
        if (move.kind, *step) in BY_RETRY:
            run[move.id] += 1
        else:
            assert move.before not in FINAL_STATES, f"{move.id} left {move.before}"
        if move.kind == "jobs":
            assert move.run == run[move.id]
        at[move.id] = move.after
    assert {job_id: run[job_id] for job_id in runs} == runs
    assert ("jobs", "queued", "running") in {(move.kind, move.before, move.after) for move in moves}


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
    assert job.state in FINAL_JOB_STATES, f"{job.state}, held: {job.held}, {states}"
    assert list(seqs) == list(range(1, len(seqs) + 1))
    assert job.event_seq == len(seqs)
    told = [k for k in kinds if k in ("job_retried", "job_cancelling") or k[4:] in FINAL_JOB_STATES]
    assert JOB_END.fullmatch(" ".join(told)), told
    assert told[-1] == f"job_{job.state}"
    assert told.count("job_retried") == job.run - 1
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


def assert_late_writes_change_nothing(fray: Fray) -> None:
    before = contents(fray.database)
    for claim in fray.ended:
        for write in fray.writes():
            fray.write_stale(claim, write)
    assert contents(fray.database) == before


def contents(database: Database) -> dict[str, Any]:
    """Everything that a write could have changed."""
    with database.session_scope() as session:
        return {table: session.scalar(text(CONTENTS.format(table))) for table in NOTED}
