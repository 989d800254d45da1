"""What must be put right when nobody else does: expired attempts, jobs stuck in `cancelling`, lost wake-ups.

When to look, and how long an expired lease must have been watched, is the business of `worker/sweeper.py`.
"""

from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dmsae.errors import StaleAttempt
from dmsae.service.cancelling import finish_cancelling
from dmsae.service.claims import is_claimable
from dmsae.service.leases import ExpiredLease, is_still_expired
from dmsae.service.recording import RetryPolicy, record_crash
from dmsae.service.states import lock_attempt
from dmsae.service.tables import Cycle, Job
from dmsae.service.tallies import count_action

MESSAGE = "The worker was not heard of for longer than its lease."


def close_expired(session: Session, expired: ExpiredLease, *, policy: RetryPolicy) -> str | None:
    """Close an attempt that was not renewed since it was seen expired; give its outcome, None if it lives."""
    try:
        lock_attempt(session, expired.held)
    except StaleAttempt:
        return None
    if not is_still_expired(session, expired):
        return None
    count_action(session, "attempt_expired")
    return record_crash(session, expired.held, code="lease_expired", message=MESSAGE, policy=policy)


def end_cancelled(session: Session, job_id: str) -> bool:
    """End a job that is stuck in `cancelling`; say whether it ended.

    Raises:
        NotFound: there is no such job.
    """
    has_ended = finish_cancelling(session, job_id)
    if has_ended:
        count_action(session, "job_cancelled")
    return has_ended


def classes_waiting(session: Session, *, longer_than_s: float) -> list[str]:
    """List the resource classes with cycles that could have been claimed for so long."""
    since = func.clock_timestamp() - timedelta(seconds=longer_than_s)
    rows = session.scalars(
        select(Cycle.resource_class)
        .join(Job, Job.id == Cycle.job_id)
        .where(is_claimable(), func.greatest(Cycle.queued_at, Cycle.not_before) < since)
        .distinct()
        .order_by(Cycle.resource_class)
    )
    return list(rows)
