"""Which jobs are there, and where does one stand? Read, list, and change what is about a job, not in it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, and_, cast, func, or_, select, tuple_
from sqlalchemy.orm import Session

from dmsae.errors import BadRequest, Deleted, Forbidden, NotFound
from dmsae.service import cancelling, retrying
from dmsae.service.events import append_event
from dmsae.service.paging import Page, decode_cursor, make_page
from dmsae.service.progress import MODEL_NAMES, JobView, find_view, view_jobs
from dmsae.service.queue_control import set_rank
from dmsae.service.requests import JobChanges
from dmsae.service.states import lock_job
from dmsae.service.tables import HAS_TAGS, Artifact, Attempt, Cycle, Event, Job, Owner


@dataclass(frozen=True)
class JobFilter:
    """What a list of jobs is narrowed to; None leaves it wide."""

    state: str | None = None
    owner: str | None = None
    tag: str | None = None
    kind: str | None = None
    group_id: str | None = None
    model: str | None = None
    """Part of what its language model is called, in any case."""
    text: str | None = None
    """Part of the name or notes, in any case."""


class CycleView(NamedTuple):
    """A cycle, how many attempts at it there were, and how much it stored."""

    cycle: Cycle
    n_attempts: int
    stored_bytes: int


class AttemptView(NamedTuple):
    """An attempt, and the index of its cycle."""

    cycle_index: int
    attempt: Attempt


class ArtifactView(NamedTuple):
    """A stored object, and the index of its cycle."""

    cycle_index: int
    artifact: Artifact

    @property
    def filename(self) -> str:
        """Give a name to save it under that tells it from other cycles' files."""
        return f"{self.artifact.job_id}-cycle{self.cycle_index}-{self.artifact.name.replace('/', '-')}"


def find_job(session: Session, job_id: str, *, kind: str | None = None) -> Job:
    """Give a job, of one kind if that is said.

    Raises:
        NotFound: there is no such job.
        Deleted: there was; the message says when it was deleted.
    """
    job = session.get(Job, job_id, populate_existing=True)
    if job is None:
        raise _missing(job_id, kind)
    _check_there(job, kind)
    return job


def view_job(session: Session, job_id: str, *, kind: str | None = None) -> JobView:
    """Show one job with its progress.

    Raises:
        NotFound: there is no such job.
        Deleted: there was.
    """
    view = find_view(session, job_id)
    if view is None:
        raise _missing(job_id, kind)
    _check_there(view.job, kind)
    return view


def list_jobs(
    session: Session, wanted: JobFilter, *, cursor: str | None = None, limit: int = 50
) -> Page[JobView]:
    """List jobs, the newest first.

    Raises:
        BadRequest: the cursor is malformed.
    """
    newest_first = (Job.created_at.desc(), Job.id.desc())
    query = select(Job).where(*_conditions(wanted)).order_by(*newest_first).limit(limit + 1)
    if cursor is not None:
        query = query.where(tuple_(Job.created_at, Job.id) < tuple_(*_after(cursor)))
    jobs = list(session.scalars(query))
    last = jobs[limit - 1] if len(jobs) > limit else None
    key = None if last is None else [last.created_at.isoformat(), last.id]
    page = make_page(jobs, limit, last_key=key)
    return Page(view_jobs(session, page.items), page.next_cursor)


def change_job(session: Session, job_id: str, *, owner_id: str | None, changes: JobChanges) -> JobView:
    """Change name, tags, notes or priority of an owner's job (None: anybody's); what is so changes nothing.

    Raises:
        NotFound: there is no such job.
        Forbidden: it belongs to another owner.
    """
    _require_owner(session, job_id, owner_id)
    lock_job(session, job_id)
    job = find_job(session, job_id)
    wanted = changes.model_dump(exclude_unset=True)
    changed = sorted(name for name, value in wanted.items() if getattr(job, name) != value)
    for name in changed:
        setattr(job, name, wanted[name])
    session.flush()
    if "priority" in changed:
        set_rank(session, job_id, job.priority)
    if changed:
        message = f"Changed: {', '.join(changed)}."
        append_event(session, job_id, "job_changed", message, data={"fields": changed})
    return view_job(session, job_id)


def cancel_job(session: Session, job_id: str, *, owner_id: str | None) -> JobView:
    """Cancel an owner's job (None: anybody's); one that has ended stays as it is.

    Raises:
        NotFound: there is no such job.
        Forbidden: it belongs to another owner.
    """
    _require_owner(session, job_id, owner_id)
    cancelling.cancel_job(session, job_id)
    return view_job(session, job_id)


def retry_job(session: Session, job_id: str, *, owner_id: str | None) -> JobView:
    """Run a failed job again, from its failed cycle on; one that was retried already stays as it is.

    Raises:
        NotFound: there is no such job.
        Forbidden: it belongs to another owner.
        Conflict: it has not failed, or a job that it starts from was deleted.
        QuotaExceeded: its owner may not have so many waiting.
    """
    _require_owner(session, job_id, owner_id)
    retrying.retry_job(session, job_id)
    return view_job(session, job_id)


def list_events(session: Session, job_id: str, *, after: int, limit: int) -> list[Event]:
    """List a job's events behind a sequence number, in order.

    Raises:
        NotFound: there is no such job.
    """
    find_job(session, job_id)
    query = select(Event).where(Event.job_id == job_id, Event.seq > after).order_by(Event.seq).limit(limit)
    return list(session.scalars(query))


def list_attempts(session: Session, job_id: str) -> list[AttemptView]:
    """List a job's attempts with the index of their cycle, in order, each with the end of its output.

    Raises:
        NotFound: there is no such job.
    """
    find_job(session, job_id)
    rows = session.execute(
        select(Cycle.index, Attempt)
        .join(Cycle, Cycle.id == Attempt.cycle_id)
        .where(Cycle.job_id == job_id)
        .order_by(Cycle.index, Attempt.number)
    )
    return [AttemptView(*row) for row in rows]


def list_artifacts(session: Session, job_id: str) -> list[ArtifactView]:
    """List a job's stored objects with the index of their cycle, in order.

    Raises:
        NotFound: there is no such job.
    """
    find_job(session, job_id)
    rows = session.execute(
        select(Cycle.index, Artifact)
        .join(Cycle, Cycle.id == Artifact.cycle_id)
        .where(Artifact.job_id == job_id)
        .order_by(Cycle.index, Artifact.name)
    )
    return [ArtifactView(*row) for row in rows]


def list_cycles(session: Session, job_id: str) -> list[CycleView]:
    """List a job's cycles in order, each with the number of its attempts and the size of what it stored.

    Raises:
        NotFound: there is no such job.
    """
    find_job(session, job_id)
    n_attempts = select(func.count()).where(Attempt.cycle_id == Cycle.id).scalar_subquery()
    stored = select(func.coalesce(func.sum(Artifact.size_bytes), 0)).where(Artifact.cycle_id == Cycle.id)
    columns = (Cycle, n_attempts, cast(stored.scalar_subquery(), BigInteger))
    rows = session.execute(select(*columns).where(Cycle.job_id == job_id).order_by(Cycle.index))
    return [CycleView(*row) for row in rows]


def _missing(job_id: str, kind: str | None) -> NotFound:
    return NotFound(f"There is no {kind or 'job'} {job_id!r}.", id=job_id)


def _check_there(job: Job, kind: str | None) -> None:
    if kind not in (None, job.kind):
        raise _missing(job.id, kind)
    if job.deleted_at is not None:
        when = job.deleted_at.isoformat(timespec="seconds")
        raise Deleted(f"The {job.kind} {job.id!r} was deleted at {when}.", id=job.id)


def _require_owner(session: Session, job_id: str, owner_id: str | None) -> None:
    """Refuse to change a job of somebody else; None: its caller may change everybody's."""
    if owner_id not in (None, find_job(session, job_id).owner_id):
        raise Forbidden(f"Job {job_id!r} belongs to another owner; only its owner may change it.", id=job_id)


def _conditions(wanted: JobFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [Job.deleted_at.is_(None)]
    if wanted.state is not None:
        conditions.append(Job.state == wanted.state)
    if wanted.kind is not None:
        conditions.append(Job.kind == wanted.kind)
    if wanted.group_id is not None:
        conditions.append(Job.group_id == wanted.group_id)
    if wanted.owner is not None:
        owner_id = select(Owner.id).where(Owner.name == wanted.owner).scalar_subquery()
        conditions.append(Job.owner_id == owner_id)
    if wanted.tag is not None:
        conditions.append(and_(HAS_TAGS, Job.tags.contains([wanted.tag])))
    if wanted.model is not None:
        names = [Job.config["model"][name].astext for name in MODEL_NAMES]
        conditions.append(or_(*(name.icontains(wanted.model, autoescape=True) for name in names)))
    if wanted.text is not None:
        texts = (Job.name, Job.notes)
        conditions.append(or_(*(text.icontains(wanted.text, autoescape=True) for text in texts)))
    return conditions


def _after(cursor: str) -> tuple[Any, str]:
    created_at, job_id = decode_cursor(cursor, str, str)
    try:
        moment = datetime.fromisoformat(created_at)
    except ValueError as error:
        raise BadRequest("The cursor is malformed.", param="cursor") from error
    return moment, job_id
