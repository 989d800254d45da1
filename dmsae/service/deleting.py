"""When may a job be deleted, and what happens at once?

It becomes a tombstone: nobody sees it any more, its objects are marked, and the sweeper takes away bit by
bit what it left (`purging.py`). Whoever starts a job from another job's core must lock that other job's row
(FOR SHARE) and refuse a deleted one; here the row is locked before anybody is asked.
"""

from sqlalchemy import ColumnElement, Select, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from dmsae.errors import Conflict, Forbidden, NotFound
from dmsae.service import uploads
from dmsae.service.publishing import published_names
from dmsae.service.source_tables import CycleSource
from dmsae.service.states import lock_job
from dmsae.service.tables import FINAL_JOB_STATES, Artifact, Core, Cycle, Job


def delete_job(session: Session, job_id: str, *, owner_id: str | None) -> None:
    """Delete an owner's job (None: anybody's) that has ended; one that is deleted stays so.

    Raises:
        NotFound: there never was such a job.
        Forbidden: it belongs to another owner.
        Conflict: it has not ended, a job that has not ended starts from what it left, or a core of it is
            published.
    """
    job = session.get(Job, job_id, populate_existing=True)
    if job is None:
        raise NotFound(f"There is no job {job_id!r}.", id=job_id)
    if owner_id not in (None, job.owner_id):
        raise Forbidden(f"Job {job_id!r} belongs to another owner; only its owner may delete it.", id=job_id)
    state = lock_job(session, job_id).state
    if state not in FINAL_JOB_STATES:
        raise Conflict(
            f"Job {job_id!r} is {state}: cancel it first (POST /jobs/{job_id}/cancel), and delete it once "
            "it has ended.",
            id=job_id,
        )
    published = published_names(session, job_id)
    if published:
        rule = "what is published stays, and the job with it"
        raise Conflict(f"Job {job_id!r} has the core {', '.join(published)}: {rule}.", id=job_id)
    for users in _unfinished_users():
        user = session.scalar(users.where(Job.id == job_id).limit(1))
        if user is not None:
            raise Conflict(
                f"Job {user!r} starts from a core of job {job_id!r}: wait until it has ended.", id=job_id
            )
    make_tombstone(session, job_id)


def make_tombstone(session: Session, job_id: str) -> bool:
    """Hide a job that has ended, and mark its objects for the sweeper; say whether it was there.

    What people wrote about it goes at once: name, tags and notes.
    """
    hidden = session.execute(
        update(Job)
        .where(Job.id == job_id, Job.state.in_(FINAL_JOB_STATES), Job.deleted_at.is_(None))
        .values(
            deleted_at=func.now(), expires_at=None, version=Job.version + 1, name=None, notes=None, tags=[]
        )
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    if hidden.one_or_none() is None:
        return False
    session.execute(
        update(Artifact)
        .where(Artifact.job_id == job_id, Artifact.deleted_at.is_(None))
        .values(deleted_at=func.now())
        .execution_options(synchronize_session=False)
    )
    uploads.release(session, job_id)
    return True


def is_given_to_unfinished() -> ColumnElement[bool]:
    """Give the condition on `jobs` that a job that has not ended starts from what this one left."""
    return or_(*(users.correlate(Job).exists() for users in _unfinished_users()))


def _unfinished_users() -> tuple[Select[str], Select[str]]:
    """Give queries for those that start from a core of `jobs`, and for those made from its cycles."""
    user, used, source = aliased(Job), aliased(Cycle), aliased(Cycle)
    is_other = (source.job_id == Job.id, user.id != Job.id, user.state.not_in(FINAL_JOB_STATES))
    users = select(user.id).join(used, used.job_id == user.id)
    by_core = users.join(Core, Core.id == used.input_core_id).join(source, source.id == Core.cycle_id)
    by_cycle = users.join(CycleSource, CycleSource.cycle_id == used.id).join(
        source, source.id == CycleSource.source_cycle_id
    )
    return by_core.where(*is_other), by_cycle.where(*is_other)
