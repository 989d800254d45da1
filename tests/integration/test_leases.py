"""Is this attempt still the one: renewing, refusing the stale, what is stored on the way."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from dmsae.errors import StaleAttempt
from dmsae.service.cancelling import cancel_job
from dmsae.service.claims import Claim, claim_cycle
from dmsae.service.database import Database
from dmsae.service.leases import Report, find_expired, is_still_expired, renew, require_open
from dmsae.service.recording import record_hand_back
from dmsae.service.tables import Attempt, Job, MetricPoint
from tests.planting import event_kinds, fresh_class, plant_job, plant_worker


@pytest.fixture
def claim(database: Database) -> Claim:
    return _claim(database, fresh_class())


def _claim(database: Database, resource_class: str, *, is_planted: bool = False) -> Claim:
    with database.session_scope() as session:
        worker_id = plant_worker(session, resource_class)
        if not is_planted:
            plant_job(session, resource_class)
        claim = claim_cycle(
            session, worker_id=worker_id, resource_class=resource_class, lease_s=30, celery_task_id=None
        )
    assert claim is not None
    return claim


def _renew(database: Database, claim: Claim, **said: object) -> bool:
    report = Report(**said)  # type: ignore[arg-type]
    return database.run(lambda session: renew(session, claim, lease_s=30, report=report)).is_cancelling


def _expire(database: Database, claim: Claim) -> None:
    with database.session_scope() as session:
        past = func.clock_timestamp() - timedelta(seconds=5)
        session.execute(update(Attempt).where(Attempt.id == claim.attempt_id).values(lease_expires_at=past))


def _is_expired(database: Database, claim: Claim) -> bool:
    found = database.run(find_expired)
    return claim.attempt_id in {expired.held.attempt_id for expired in found}


def _progress(step: int, loss: float | None = 1.0) -> dict[str, object]:
    return {"step": step, "n_tokens": step * 10, "loss": loss, "l0": 3.0}


def _points(database: Database, claim: Claim) -> list[tuple[int, int]]:
    with database.session_scope() as session:
        rows = session.execute(
            select(MetricPoint.step, MetricPoint.fence)
            .where(MetricPoint.cycle_id == claim.cycle_id)
            .order_by(MetricPoint.step)
        )
        return [(row.step, row.fence) for row in rows]


def test_renewing_stores_what_the_trainer_said(database: Database, claim: Claim) -> None:
    event = {"kind": "hook_resolved", "message": "model.layers.3", "data": {"layer": 3}}
    _renew(
        database,
        claim,
        phase="training",
        progress=_progress(2),
        points=(_progress(1), _progress(2, None)),
        events=(event,),
        log_tail="hello",
    )
    with database.session_scope() as session:
        attempt = session.get_one(Attempt, claim.attempt_id)
        assert (attempt.phase, attempt.log_tail) == ("training", "hello")
        assert attempt.progress == _progress(2)
        assert event_kinds(session, claim.job_id)[-1] == "hook_resolved"
    assert _points(database, claim) == [(1, claim.fence), (2, claim.fence)]


def test_what_is_not_said_stays_and_the_version_too(database: Database, claim: Claim) -> None:
    _renew(database, claim, phase="training", log_tail="hello")

    def version() -> int:
        return database.run(lambda s: s.scalars(select(Job.version).where(Job.id == claim.job_id)).one())

    before = version()
    _renew(database, claim)
    assert version() == before
    with database.session_scope() as session:
        attempt = session.get_one(Attempt, claim.attempt_id)
        assert (attempt.phase, attempt.log_tail) == ("training", "hello")
    _renew(database, claim, progress=_progress(1))
    assert version() > before


def test_a_cancellation_is_seen_at_the_next_renewal(database: Database, claim: Claim) -> None:
    assert not _renew(database, claim)
    database.run(lambda session: cancel_job(session, claim.job_id))
    assert _renew(database, claim)


def test_an_expired_attempt_that_is_open_can_be_renewed(database: Database, claim: Claim) -> None:
    _expire(database, claim)
    assert _is_expired(database, claim)
    _renew(database, claim)
    assert not _is_expired(database, claim)


def test_a_closed_attempt_is_refused_everywhere(database: Database, claim: Claim) -> None:
    database.run(lambda session: record_hand_back(session, claim, reason="stops"))
    with pytest.raises(StaleAttempt):
        _renew(database, claim, progress=_progress(1), points=(_progress(1),))
    assert _points(database, claim) == []
    with pytest.raises(StaleAttempt):
        database.run(lambda session: require_open(session, claim))
    with pytest.raises(StaleAttempt):
        database.run(lambda session: record_hand_back(session, claim, reason="again"))


def test_an_attempt_renewed_after_it_was_seen_expired_is_left_alone(database: Database, claim: Claim) -> None:
    _expire(database, claim)
    seen = next(e for e in database.run(find_expired) if e.held.attempt_id == claim.attempt_id)
    assert database.run(lambda session: is_still_expired(session, seen))
    _renew(database, claim)
    assert not database.run(lambda session: is_still_expired(session, seen))


def test_the_points_of_a_new_attempt_replace_later_ones_of_earlier_attempts(
    database: Database, claim: Claim
) -> None:
    _renew(database, claim, points=tuple(_progress(step) for step in (1, 2, 3, 4)))
    database.run(lambda session: record_hand_back(session, claim, reason="stops"))
    second = _claim(database, claim.resource_class, is_planted=True)
    _renew(database, second, points=(_progress(2), _progress(3)))
    assert _points(database, second) == [(1, claim.fence), (2, second.fence), (3, second.fence)]


def test_a_point_told_twice_is_kept_once(database: Database, claim: Claim) -> None:
    _renew(database, claim, points=(_progress(1, 5.0),))
    _renew(database, claim, points=(_progress(1, 4.0), _progress(1, 3.0)))
    with database.session_scope() as session:
        losses = session.scalars(select(MetricPoint.loss).where(MetricPoint.cycle_id == claim.cycle_id))
        assert losses.all() == [3.0]
