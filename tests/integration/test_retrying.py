"""A failed job runs again from its failed cycle, once for each retry, and only if it still can."""

import threading
from typing import Any

import pytest
from sqlalchemy import func, select, update

from dmsae.errors import Conflict, NotFound, QuotaExceeded
from dmsae.service.cancelling import cancel_job
from dmsae.service.claims import Claim
from dmsae.service.database import Database
from dmsae.service.deleting import make_tombstone
from dmsae.service.groups import view_group
from dmsae.service.recording import record_failure
from dmsae.service.retrying import retry_job
from dmsae.service.tables import Cycle, Event, Job, Owner
from tests.finished import claim_of
from tests.planting import cycle_states, event_kinds, job_state, make_lineage, plant_job, plant_worker
from tests.training_rows import record, submit_distillations, submit_trainings


@pytest.fixture
def worker_id(database: Database) -> str:
    return database.run(lambda session: plant_worker(session, "cpu"))


def fail(database: Database, claim: Claim) -> None:
    database.run(lambda s: record_failure(s, claim, code="degenerate_scores", message="All are 0."))


def failed_in_cycle_1(database: Database, worker_id: str) -> tuple[str, list[dict[str, Any]]]:
    """Plant a job of three cycles of which the first succeeded; give it and the core that was found."""
    job_id = database.run(lambda session: plant_job(session, "cpu"))
    first = claim_of(database, worker_id)
    lineage = make_lineage(first, [], kept=[], new=[3, 5])
    record(database, first, lineage)
    fail(database, claim_of(database, worker_id))
    return job_id, lineage["core"]


def states(database: Database, job_id: str) -> tuple[str, list[str]]:
    with database.session_scope() as session:
        return job_state(session, job_id), cycle_states(session, job_id)


def retry(database: Database, job_id: str) -> bool:
    return database.run(lambda session: retry_job(session, job_id))


def test_a_failed_job_goes_on_from_its_failed_cycle_and_keeps_what_was_finished(
    database: Database, worker_id: str, wake_ups: list[str]
) -> None:
    job_id, core = failed_in_cycle_1(database, worker_id)
    assert states(database, job_id) == ("failed", ["succeeded", "failed", "skipped"])
    wake_ups.clear()
    assert retry(database, job_id)
    assert states(database, job_id) == ("queued", ["succeeded", "queued", "waiting"])
    assert wake_ups == ["cpu"]
    with database.session_scope() as session:
        job = session.get_one(Job, job_id)
        assert (job.run, job.error, job.state_reason, job.finished_at) == (2, None, None, None)
        told = session.scalars(select(Event).where(Event.kind == "job_retried")).one()
        assert (told.cycle_index, told.data) == (1, {"run": 2})
    for kept in ([0], []):
        claim = claim_of(database, worker_id)
        assert [file.name for file in claim.input_files] == ["core/core.json", "core/core.safetensors"]
        lineage = make_lineage(claim, core, kept=kept, new=[8])
        record(database, claim, lineage)
        core = lineage["core"]
    assert states(database, job_id) == ("succeeded", ["succeeded"] * 3)
    with database.session_scope() as session:
        assert event_kinds(session, job_id).count("job_started") == 2


def test_a_second_retry_finds_the_job_queued_or_running_and_changes_nothing(
    database: Database, worker_id: str
) -> None:
    job_id, _ = failed_in_cycle_1(database, worker_id)
    answers: list[bool] = []
    barrier = threading.Barrier(8)

    def try_one() -> None:
        barrier.wait(10)
        answers.append(retry(database, job_id))

    threads = [threading.Thread(target=try_one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == [False] * 7 + [True]
    claim = claim_of(database, worker_id)
    assert not retry(database, job_id)
    with database.session_scope() as session:
        assert session.get_one(Job, job_id).run == 2
    fail(database, claim)
    assert retry(database, job_id)
    with database.session_scope() as session:
        assert session.get_one(Job, job_id).run == 3


def test_only_a_failed_job_is_retried_and_the_refusal_names_state_and_rule(
    database: Database, worker_id: str
) -> None:
    job_id = database.run(lambda session: plant_job(session, "cpu", n_cycles=1))
    for state, change in (
        ("queued", lambda: None),
        ("running", lambda: claim_of(database, worker_id)),
        ("cancelling", lambda: database.run(lambda session: cancel_job(session, job_id))),
    ):
        change()
        with pytest.raises(Conflict, match=f"is {state}: only a failed one is retried"):
            retry(database, job_id)
    assert states(database, job_id)[0] == "cancelling"
    other = database.run(lambda session: plant_job(session, "cpu", n_cycles=1))
    database.run(lambda session: cancel_job(session, other))
    with pytest.raises(Conflict, match=r"is cancelled: only a failed one is retried; .*clone"):
        retry(database, other)


def test_a_training_whose_source_was_deleted_is_refused(database: Database, worker_id: str) -> None:
    (source,) = submit_distillations(database, n_cycles=1)
    claim = claim_of(database, worker_id)
    record(database, claim, make_lineage(claim, [], kept=[], new=[3, 5]))
    core = {"kind": "selected", "cycle": {"job_id": source.job.id}}
    (training,) = submit_trainings(database, core=core)
    fail(database, claim_of(database, worker_id))
    database.run(lambda session: make_tombstone(session, source.job.id))
    with pytest.raises(Conflict, match=f"it starts from job '{source.job.id}', which was deleted at"):
        retry(database, training.job.id)
    assert states(database, training.job.id) == ("failed", ["failed"])


def test_a_job_that_was_deleted_is_not_retried(database: Database, worker_id: str) -> None:
    job_id, _ = failed_in_cycle_1(database, worker_id)
    database.run(lambda session: make_tombstone(session, job_id))
    with pytest.raises(NotFound, match="deleted"):
        retry(database, job_id)


def test_chains_are_compared_once_the_one_that_failed_was_retried(database: Database, worker_id: str) -> None:
    views = submit_distillations(database, n_cycles=1, chains=2)
    claims = [claim_of(database, worker_id) for _ in views]
    record(database, claims[0], make_lineage(claims[0], [], kept=[], new=[3, 5]))
    fail(database, claims[1])
    group_id = str(views[0].job.group_id)
    with database.session_scope() as session:
        assert view_group(session, group_id).state == "failed"
    assert retry(database, claims[1].job_id)
    again = claim_of(database, worker_id)
    record(database, again, make_lineage(again, [], kept=[], new=[4, 6]))
    with database.session_scope() as session:
        group = view_group(session, group_id)
        assert [view.job.kind for view in group.jobs] == ["distillation", "distillation", "probe"]
        assert group.state == "running"


def test_a_retry_counts_as_a_waiting_job_of_its_owner(database: Database, worker_id: str) -> None:
    job_id, _ = failed_in_cycle_1(database, worker_id)
    with database.session_scope() as session:
        session.execute(update(Owner).values(max_queued=0))
    with pytest.raises(QuotaExceeded):
        retry(database, job_id)
    assert states(database, job_id)[0] == "failed"


def test_another_run_has_a_new_count_of_attempts_and_the_priority_that_was_set_meanwhile(
    database: Database, worker_id: str
) -> None:
    job_id, _ = failed_in_cycle_1(database, worker_id)
    with database.session_scope() as session:
        session.execute(update(Cycle).values(n_failed_attempts=3, n_crashed_attempts=100))
        session.execute(update(Job).values(priority="high"))
    retry(database, job_id)
    with database.session_scope() as session:
        cycle = session.scalars(select(Cycle).where(Cycle.state == "queued")).one()
        assert (cycle.n_failed_attempts, cycle.n_crashed_attempts, cycle.priority_rank) == (0, 0, 0)
        assert (cycle.error, cycle.state_reason, cycle.finished_at) == (None, None, None)
        assert session.scalars(select(func.now() - cycle.queued_at)).one().total_seconds() < 10
