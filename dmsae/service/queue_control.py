"""What may people change about the queue? Pauses, holds, priorities, and the weights and limits of owners."""

from dataclasses import dataclass

from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from dmsae.errors import Conflict, FieldProblem, InvalidConfig, NotFound, QuotaExceeded
from dmsae.service.database import wake_after_commit
from dmsae.service.events import append_event
from dmsae.service.queue_tables import QueuePause
from dmsae.service.requests import PRIORITY_RANKS
from dmsae.service.states import lock_job
from dmsae.service.tables import FINAL_JOB_STATES, Cycle, Job, Owner

LARGEST = 1_000_000
LARGEST_QUOTA_S = 1e9
ROOM = select(Owner.name, Owner.max_queued).where(Owner.id == bindparam("owner_id"))


@dataclass(frozen=True)
class OwnerChanges:
    """What is to change about an owner's turns; None leaves it, a negative limit takes it away."""

    weight: float | None = None
    max_running: int | None = None
    max_queued: int | None = None
    high_quota_s: float | None = None


def pause_queue(session: Session, *, reason: str | None = None) -> None:
    """Let nothing be claimed until it is resumed; what runs goes on. Again only changes the reason."""
    pause = insert(QueuePause).values(id=1, reason=reason)
    session.execute(pause.on_conflict_do_update(index_elements=["id"], set_={"reason": reason}))


def resume_queue(session: Session) -> bool:
    """Let cycles be claimed again; say whether it was paused. Workers hear of it after the commit."""
    resumed = session.scalar(delete(QueuePause).returning(QueuePause.id)) is not None
    waiting = select(Cycle.resource_class).where(Cycle.state == "queued").distinct()
    for resource_class in session.scalars(waiting).all():
        wake_after_commit(session, resource_class)
    return resumed


def hold_job(session: Session, job_id: str) -> None:
    """Keep a job's cycles from being claimed; one that runs goes on. Again is no error.

    Raises:
        NotFound: there is no such job.
        Conflict: it has ended.
    """
    _set_held(session, job_id, held=True)


def release_job(session: Session, job_id: str) -> None:
    """Let a held job's cycles be claimed again. Again is no error.

    Raises:
        NotFound: there is no such job.
        Conflict: it has ended.
    """
    _set_held(session, job_id, held=False)


def change_priority(session: Session, job_id: str, priority: str) -> None:
    """Give a job another priority, whoever owns it.

    Raises:
        NotFound: there is no such job.
        InvalidConfig: there is no such priority.
        Conflict: it has ended.
    """
    if priority not in PRIORITY_RANKS:
        rule = f"must be one of {', '.join(PRIORITY_RANKS)}"
        raise InvalidConfig([FieldProblem("priority", priority[:50], rule)])
    job = _lock_unfinished(session, job_id)
    if job.priority != priority:
        job.priority = priority
        set_rank(session, job_id, priority)
        append_event(session, job_id, "job_changed", "Changed: priority.", data={"fields": ["priority"]})


def set_rank(session: Session, job_id: str, priority: str) -> None:
    """Let the order of claims follow a job's new priority."""
    session.flush()
    session.execute(
        update(Cycle)
        .where(Cycle.job_id == job_id, Cycle.state.in_(("waiting", "queued", "running")))
        .values(priority_rank=PRIORITY_RANKS[priority])
    )


def set_owner(session: Session, name: str, changes: OwnerChanges) -> Owner:
    """Change an owner's weight and limits; give the owner as it is then.

    Raises:
        NotFound: there is no such owner.
        InvalidConfig: a value is out of bounds, or nothing is to change.
    """
    given = {field: value for field, value in vars(changes).items() if value is not None}
    if not given:
        raise InvalidConfig([FieldProblem("owner", name[:64], "say what is to change about it")])
    if "weight" in given and not 0 < given["weight"] <= LARGEST:
        raise InvalidConfig([FieldProblem("weight", given["weight"], f"must lie in (0, {LARGEST}]")])
    largest = {"high_quota_s": LARGEST_QUOTA_S}
    too_large = [field for field in given if given[field] > largest.get(field, LARGEST)]
    if too_large:
        raise InvalidConfig([FieldProblem(field, given[field], "is too large") for field in too_large])
    values = {field: None if field != "weight" and value < 0 else value for field, value in given.items()}
    found = session.scalar(update(Owner).where(Owner.name == name).values(**values).returning(Owner.id))
    if found is None:
        raise NotFound(f"There is no owner {name!r}.", param="owner")
    return session.get_one(Owner, found, populate_existing=True)


def require_room(session: Session, owner_id: str, *, n_jobs: int) -> str:
    """Refuse jobs beyond what an owner may have waiting; its row stays locked where there is a limit.

    Gives the owner's name.

    Raises:
        QuotaExceeded: with the limit and what waits.
    """
    name, limit = session.execute(ROOM, {"owner_id": owner_id}).one()
    if limit is None:
        return str(name)
    session.execute(select(Owner.id).where(Owner.id == owner_id).with_for_update(key_share=True))
    queued = select(func.count()).select_from(Job).where(Job.owner_id == owner_id, Job.state == "queued")
    n_queued = session.scalars(queued).one()
    if n_queued + n_jobs > limit:
        raise QuotaExceeded(
            f"{n_jobs} more jobs would make {n_queued + n_jobs} that wait, and this owner may have {limit}: "
            "wait until some have begun, or cancel some.",
            n_queued=n_queued,
            max_queued=limit,
        )
    return str(name)


def _set_held(session: Session, job_id: str, *, held: bool) -> None:
    job = _lock_unfinished(session, job_id)
    if job.held == held:
        return
    job.held = held
    session.flush()
    session.execute(update(Cycle).where(Cycle.job_id == job_id).values(held=held))
    kind, message = ("job_held", "The job is held.") if held else ("job_released", "The job may run again.")
    append_event(session, job_id, kind, message)
    if not held:
        queued = select(Cycle.resource_class).where(Cycle.job_id == job_id, Cycle.state == "queued")
        for resource_class in session.scalars(queued).all():
            wake_after_commit(session, resource_class)


def _lock_unfinished(session: Session, job_id: str) -> Job:
    state = lock_job(session, job_id).state
    if state in FINAL_JOB_STATES:
        raise Conflict(f"Job {job_id!r} has ended: it is {state}.", id=job_id)
    return session.get_one(Job, job_id, populate_existing=True)
