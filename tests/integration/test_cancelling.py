"""How a job ends early, in every state, and who wins when all happens at once."""

import pytest
from sqlalchemy import select

from dmsae.errors import NotFound
from dmsae.service.cancelling import cancel_job, find_cancelling, finish_cancelling
from dmsae.service.claims import Claim, claim_cycle
from dmsae.service.database import Database
from dmsae.service.recording import (
    RetryPolicy,
    record_cancelled,
    record_crash,
    record_failure,
    record_success,
)
from dmsae.service.tables import Core, Event, Job
from tests.planting import (
    as_result,
    cycle_states,
    event_kinds,
    fresh_class,
    job_state,
    make_lineage,
    outcomes,
    plant_job,
    plant_worker,
)


@pytest.fixture
def claim(database: Database) -> Claim:
    resource_class = fresh_class()
    with database.session_scope() as session:
        worker_id = plant_worker(session, resource_class)
        plant_job(session, resource_class)
        claim = claim_cycle(
            session, worker_id=worker_id, resource_class=resource_class, lease_s=30, celery_task_id=None
        )
    assert claim is not None
    return claim


def cancel(database: Database, job_id: str) -> None:
    database.run(lambda session: cancel_job(session, job_id))


def assert_cancelled(database: Database, claim: Claim, confirmed_by: str) -> None:
    with database.session_scope() as session:
        assert job_state(session, claim.job_id) == "cancelled"
        assert cycle_states(session, claim.job_id) == ["cancelled", "skipped", "skipped"]
        assert outcomes(session, claim.job_id) == ["cancelled"]
        last = session.scalars(
            select(Event).where(Event.job_id == claim.job_id).order_by(Event.seq.desc()).limit(1)
        ).one()
        assert (last.kind, last.data) == ("job_cancelled", {"confirmed_by": confirmed_by})


def test_a_job_that_never_ran_is_cancelled_at_once(database: Database) -> None:
    job_id = database.run(lambda session: plant_job(session, fresh_class()))
    cancel(database, job_id)
    with database.session_scope() as session:
        assert job_state(session, job_id) == "cancelled"
        assert cycle_states(session, job_id) == ["cancelled", "skipped", "skipped"]
        assert event_kinds(session, job_id) == ["job_cancelling", "job_cancelled"]
        assert session.get_one(Job, job_id).finished_at is not None


def test_a_running_job_waits_for_its_supervisor(database: Database, claim: Claim) -> None:
    cancel(database, claim.job_id)
    with database.session_scope() as session:
        assert job_state(session, claim.job_id) == "cancelling"
        assert cycle_states(session, claim.job_id)[0] == "running"
    assert not database.run(lambda session: finish_cancelling(session, claim.job_id))
    assert claim.job_id not in database.run(find_cancelling)
    database.run(lambda session: record_cancelled(session, claim, confirmed_by="supervisor"))
    assert_cancelled(database, claim, "supervisor")


def test_cancelling_again_changes_nothing(database: Database, claim: Claim) -> None:
    cancel(database, claim.job_id)
    cancel(database, claim.job_id)
    database.run(lambda session: record_cancelled(session, claim, confirmed_by="lease"))
    cancel(database, claim.job_id)
    with database.session_scope() as session:
        assert event_kinds(session, claim.job_id).count("job_cancelling") == 1
    assert_cancelled(database, claim, "lease")


def test_a_job_that_ended_stays_as_it_is(database: Database, claim: Claim) -> None:
    database.run(lambda s: record_failure(s, claim, code="model_not_found", message="No such model."))
    cancel(database, claim.job_id)
    with database.session_scope() as session:
        assert job_state(session, claim.job_id) == "failed"


def test_an_unknown_job_is_not_found(database: Database) -> None:
    with pytest.raises(NotFound):
        cancel(database, "job_unknown")


def test_a_result_that_comes_after_the_cancellation_is_not_recorded(database: Database, claim: Claim) -> None:
    cancel(database, claim.job_id)
    result = as_result(make_lineage(claim, [], kept=[], new=[5]))
    database.run(lambda session: record_success(session, claim, artifacts=(), result=result))
    assert_cancelled(database, claim, "supervisor")
    with database.session_scope() as session:
        assert session.scalars(select(Core).where(Core.cycle_id == claim.cycle_id)).all() == []


def test_a_failure_after_the_cancellation_counts_as_cancelled(database: Database, claim: Claim) -> None:
    cancel(database, claim.job_id)
    database.run(lambda s: record_failure(s, claim, code="out_of_memory", message="Too big."))
    assert_cancelled(database, claim, "supervisor")


def test_a_lease_that_ran_out_while_cancelling_ends_the_job(database: Database, claim: Claim) -> None:
    cancel(database, claim.job_id)
    policy = RetryPolicy(max_attempts=3, backoff_s=1)
    database.run(lambda s: record_crash(s, claim, code="lease_expired", message="It ran out.", policy=policy))
    assert_cancelled(database, claim, "lease")
