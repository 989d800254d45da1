"""Which state may follow which? Every move is one conditional UPDATE; zero rows mean that another was first.

Rows are locked in the order job, cycle, attempt.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, select, update
from sqlalchemy.orm import Session

from dmsae.errors import NotFound, StaleAttempt
from dmsae.service.events import append_event
from dmsae.service.tables import FINAL_JOB_STATES, Attempt, Cycle, Job
from dmsae.service.webhook_deliveries import queue_deliveries

JOB_MOVES = {
    "queued": ("failed",),  # somebody retried it: another run
    "running": ("queued",),  # its first cycle of this run was claimed
    "cancelling": ("queued", "running"),  # somebody wants it to end
    "succeeded": ("running",),  # its last cycle was recorded, or its core settled
    "failed": ("running",),  # a cycle failed for good
    "cancelled": ("cancelling",),  # its trainer is gone, or never was
}
"""State of a job -> the states that it may be reached from; it begins as queued, and ends in one of three."""

CYCLE_MOVES = {
    "waiting": ("skipped",),  # its job was retried
    "queued": ("waiting", "running", "failed"),  # the one before is recorded; an attempt broke off; retried
    "running": ("queued",),  # a worker claimed it
    "succeeded": ("running",),  # its attempt was recorded
    "failed": ("running",),  # its attempt failed for good, or was one too many
    "cancelled": ("queued", "running"),  # its job was cancelled
    "skipped": ("waiting",),  # its job ended before it
}
"""State of a cycle -> the states that it may be reached from; it begins as waiting, or as queued."""

FINAL_CYCLE_STATES = ("succeeded", "failed", "cancelled", "skipped")


@dataclass(frozen=True)
class Held:
    """An attempt and what it belongs to: how every later write names itself."""

    job_id: str
    cycle_id: str
    cycle_index: int
    attempt_id: str
    attempt_number: int
    fence: int
    resource_class: str

    @property
    def object_prefix(self) -> str:
        """Where this attempt alone stores its objects."""
        number = f"{self.attempt_number}-{self.fence}"
        return f"jobs/{self.job_id}/cycles/{self.cycle_index}/attempts/{number}/"


def lock_job(session: Session, job_id: str) -> Row[tuple[str, dict[str, Any]]]:
    """Lock a job's row and give its (state, config).

    Raises:
        NotFound: there is no such job.
    """
    row = session.execute(
        select(Job.state, Job.config).where(Job.id == job_id).with_for_update(key_share=True)
    ).one_or_none()
    if row is None:
        raise NotFound(f"There is no job {job_id!r}.", id=job_id)
    return row


def lock_attempt(session: Session, held: Held) -> Row[tuple[str, dict[str, Any]]]:
    """Lock job, cycle and attempt, in this order, and give the job's (state, config).

    Raises:
        StaleAttempt: the attempt is closed, or its number is another's.
    """
    job = lock_job(session, held.job_id)
    session.execute(select(Cycle.id).where(Cycle.id == held.cycle_id).with_for_update(key_share=True))
    found = session.scalar(
        select(Attempt.id)
        .where(Attempt.id == held.attempt_id, Attempt.fence == held.fence, Attempt.outcome.is_(None))
        .with_for_update(key_share=True)
    )
    if found is None:
        raise stale(held)
    return job


def stale(held: Held) -> StaleAttempt:
    """Say which attempt came too late."""
    return StaleAttempt(attempt=held.attempt_id, fence=held.fence)


def move_job(
    session: Session,
    job_id: str,
    state: str,
    *,
    reason: str | None = None,
    error: dict[str, Any] | None = None,
) -> bool:
    """Move a job to `state` if it may be reached from where it is; say whether it moved."""
    values: dict[str, Any] = {"state": state, "state_reason": reason, "version": Job.version + 1}
    if error is not None:
        values["error"] = error
    if state == "running":
        values["started_at"] = func.coalesce(Job.started_at, func.now())
    if state in FINAL_JOB_STATES:
        values["finished_at"] = func.now()
    if state == "queued":
        values |= {"run": Job.run + 1, "error": None, "finished_at": None, "expires_at": None}
    moved = session.execute(
        update(Job)
        .where(Job.id == job_id, Job.state.in_(JOB_MOVES[state]))
        .values(values)
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    has_moved = moved.one_or_none() is not None
    if has_moved and state in FINAL_JOB_STATES:
        queue_deliveries(session, job_id)
    return has_moved


def move_cycle(session: Session, cycle_id: str, state: str, **changes: Any) -> bool:
    """Move a cycle to `state` if it may be reached from where it is; say whether it moved."""
    values: dict[str, Any] = {"state": state, "state_reason": None, **changes}
    if state == "running":
        values["started_at"] = func.coalesce(Cycle.started_at, func.now())
        values["not_before"] = None
    if state in FINAL_CYCLE_STATES:
        values["finished_at"] = func.now()
    moved = session.execute(
        update(Cycle)
        .where(Cycle.id == cycle_id, Cycle.state.in_(CYCLE_MOVES[state]))
        .values(values)
        .returning(Cycle.id)
        .execution_options(synchronize_session=False)
    )
    return moved.one_or_none() is not None


def close_attempt(session: Session, held: Held, outcome: str, *, error: dict[str, Any] | None = None) -> None:
    """Close an open attempt with its outcome.

    Raises:
        StaleAttempt: it is not open any more.
    """
    closed = session.execute(
        update(Attempt)
        .where(Attempt.id == held.attempt_id, Attempt.fence == held.fence, Attempt.outcome.is_(None))
        .values(outcome=outcome, error=error, closed_at=func.clock_timestamp())
        .returning(Attempt.id)
        .execution_options(synchronize_session=False)
    )
    if closed.one_or_none() is None:
        raise stale(held)


def end_unstarted_cycles(session: Session, job_id: str, *, reason: str) -> None:
    """End the cycles that will never run: those queued are cancelled, those waiting are skipped."""
    unstarted = session.execute(
        select(Cycle.id, Cycle.state)
        .where(Cycle.job_id == job_id, Cycle.state.in_(("waiting", "queued")))
        .order_by(Cycle.index)
        .with_for_update(key_share=True)
    )
    for cycle_id, state in unstarted:
        move_cycle(session, cycle_id, "skipped" if state == "waiting" else "cancelled", state_reason=reason)


def tell(
    session: Session, held: Held, kind: str, message: str, *, data: dict[str, Any] | None = None
) -> None:
    """Append an event of this attempt to its job."""
    append_event(
        session,
        held.job_id,
        kind,
        message,
        cycle_index=held.cycle_index,
        attempt_number=held.attempt_number,
        data=data,
    )
