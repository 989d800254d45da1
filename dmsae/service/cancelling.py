"""How does a job end early?

A job without a running cycle is cancelled at once. Otherwise it waits as `cancelling` until its
supervisor has proven the trainer gone, or until the attempt's lease has run out.
"""

from sqlalchemy import select
from sqlalchemy.orm import Session

from dmsae.service.events import append_event
from dmsae.service.states import end_unstarted_cycles, lock_job, move_job
from dmsae.service.tables import Attempt, Cycle, Job

REASON = "The job was cancelled."


def cancel_job(session: Session, job_id: str) -> None:
    """Cancel a job; one that has ended, or is being cancelled, stays as it is.

    Raises:
        NotFound: there is no such job.
    """
    lock_job(session, job_id)
    if not move_job(session, job_id, "cancelling", reason="Waits until its trainer is gone."):
        return
    append_event(session, job_id, "job_cancelling", "The job is being cancelled.")
    finish_cancelling(session, job_id)


def finish_cancelling(session: Session, job_id: str) -> bool:
    """End a job that is being cancelled and has no open attempt; say whether it ended.

    Raises:
        NotFound: there is no such job.
    """
    job = lock_job(session, job_id)
    if job.state != "cancelling" or _has_open_attempt(session, job_id):
        return False
    end_unstarted_cycles(session, job_id, reason=REASON)
    move_job(session, job_id, "cancelled")
    append_event(session, job_id, "job_cancelled", "Cancelled: no cycle was running.")
    return True


def find_cancelling(session: Session) -> list[str]:
    """List the jobs that are being cancelled and have no open attempt."""
    is_open = (
        select(Attempt.id)
        .join(Cycle, Cycle.id == Attempt.cycle_id)
        .where(Cycle.job_id == Job.id, Attempt.outcome.is_(None))
        .exists()
    )
    return list(session.scalars(select(Job.id).where(Job.state == "cancelling", ~is_open).order_by(Job.id)))


def _has_open_attempt(session: Session, job_id: str) -> bool:
    found = session.scalar(
        select(Attempt.id)
        .join(Cycle, Cycle.id == Attempt.cycle_id)
        .where(Cycle.job_id == job_id, Attempt.outcome.is_(None))
        .limit(1)
    )
    return found is not None
