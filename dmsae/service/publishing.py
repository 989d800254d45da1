"""Which cores have a name, and how does a core come by one? Published cores are never changed or deleted.

A name, such as `lab/gemma-2-2b-l12`, belongs to whoever publishes under it first; each core that is published
under it is one version more, counted from 1. Triggers in the database refuse to change what is published.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, func, select, tuple_, update
from sqlalchemy.orm import Session, aliased

from dmsae.errors import BadRequest, Conflict, FieldProblem, Forbidden, InvalidConfig, NotFound
from dmsae.service.events import append_event
from dmsae.service.jobs import find_job
from dmsae.service.lineage import find_core_ids
from dmsae.service.paging import Page, decode_cursor, make_page
from dmsae.service.states import lock_job
from dmsae.service.tables import Core, Cycle, Job, Owner

NAMES_LOCK = 0x646D73_10
"""Key of the advisory locks, one a name, under which its next version is counted."""
CORE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class CoreListFilter:
    """What a list of cores is narrowed to; None leaves it wide."""

    job_id: str | None = None
    name: str | None = None
    """Published under it, without a version."""
    is_published: bool | None = None


class CoreAbout(NamedTuple):
    """A core, and the cycle that selected it or was given it."""

    core: Core
    job_id: str
    cycle_index: int
    owner: str
    publisher: str | None

    @property
    def published_as(self) -> str | None:
        """Give `name@version`; None where it has none."""
        core = self.core
        return None if core.name is None else f"{core.name}@{core.published_version}"


def publish_core(session: Session, core_id: str, name: str, *, owner_id: str | None) -> CoreAbout:
    """Give a core of an owner's job (None: anybody's) the next version of a name; again changes nothing.

    Its publisher is the owner of its job.

    Raises:
        NotFound: there is no such core, or its job was deleted.
        Forbidden: the core or the name belongs to another owner.
        Conflict: it has another name, or no cycle selected it.
    """
    about = _one(session, Core.id == core_id, core_id)
    job = find_job(session, about.job_id)
    if owner_id not in (None, job.owner_id):
        rule = f"belongs to {about.owner}; only its owner may publish it"
        raise Forbidden(f"Core {core_id!r} {rule}.", id=core_id)
    if about.core.cycle_id is None:
        rule = "was made for a training: only a core that a cycle selected can be published"
        raise Conflict(f"Core {core_id!r} {rule}.", id=core_id)
    lock_job(session, job.id)
    find_job(session, job.id)
    session.execute(select(func.pg_advisory_xact_lock(NAMES_LOCK, func.hashtext(name))))
    about = _one(session, Core.id == core_id, core_id)
    if about.core.name is not None:
        if about.core.name == name:
            return about
        raise Conflict(f"Core {core_id!r} is published as {about.published_as}: that stays.", id=core_id)
    named = {"name": name, "published_version": _next_version(session, name, job.owner_id)}
    session.execute(
        update(Core)
        .where(Core.id == core_id, Core.name.is_(None))
        .values(**named, published_at=func.now(), published_by=job.owner_id)
        .execution_options(synchronize_session=False)
    )
    published = _one(session, Core.id == core_id, core_id)
    message = f"The core of cycle {about.cycle_index} is published as {published.published_as}."
    data = {"core_id": core_id, **named}
    append_event(session, job.id, "core_published", message, cycle_index=about.cycle_index, data=data)
    return published


def find_core(session: Session, reference: str) -> CoreAbout:
    """Find a core by its id, by `name@version`, or by a name alone: then its last version.

    Raises:
        NotFound: there is none, or its job was deleted.
    """
    if CORE_ID.fullmatch(reference):
        about = _one(session, Core.id == reference, reference)
        find_job(session, about.job_id)
        return about
    name, _, version = reference.partition("@")
    found = session.execute(
        _query()
        .where(Core.name == name, *_is_version(version))
        .order_by(Core.published_version.desc())
        .limit(1)
    ).one_or_none()
    if found is None:
        raise NotFound(f"There is no core {reference!r}.", id=reference)
    return CoreAbout(*found)


def list_cores(
    session: Session, wanted: CoreListFilter, *, cursor: str | None = None, limit: int = 50
) -> Page[CoreAbout]:
    """List cores, the newest first; published ones alone by when they were published.

    Raises:
        NotFound: there is no such job.
        BadRequest: the cursor is malformed.
    """
    by_name = wanted.is_published is True or wanted.name is not None
    keys = (Core.published_at, Core.id) if by_name else (Core.id,)
    query = _query().where(*_conditions(session, wanted)).order_by(*(key.desc() for key in keys))
    if cursor is not None:
        query = query.where(tuple_(*keys) < tuple_(*_after(cursor, by_name=by_name)))
    found = [CoreAbout(*row) for row in session.execute(query.limit(limit + 1))]
    return make_page(found, limit, last_key=_key(found[limit - 1], by_name) if len(found) > limit else None)


def published_names(session: Session, job_id: str) -> Sequence[str]:
    """Give the names under which cores of a job are published."""
    query = select(Core).join(Cycle, Cycle.id == Core.cycle_id).where(Cycle.job_id == job_id)
    cores = session.scalars(query.where(Core.name.is_not(None)).order_by(Cycle.index))
    return [f"{core.name}@{core.published_version}" for core in cores]


def has_published_core() -> ColumnElement[bool]:
    """Give the condition on `jobs` that a core of the job is published."""
    query = select(Cycle.job_id).join(Core, Core.cycle_id == Cycle.id)
    return Job.id.in_(query.where(Core.name.is_not(None)))


def _next_version(session: Session, name: str, owner_id: str) -> int:
    last = session.execute(
        select(Core.published_version, Core.published_by, Owner.name)
        .join(Owner, Owner.id == Core.published_by)
        .where(Core.name == name)
        .order_by(Core.published_version.desc())
        .limit(1)
    ).one_or_none()
    if last is None:
        return 1
    if last.published_by != owner_id:
        rule = f"belongs to {last.name}, who published under it first"
        raise Forbidden(f"name = {name!r}: {rule}.", param="name")
    return (last.published_version or 0) + 1


def _query() -> Select[Core, str, int, str, str]:
    cycle_id = func.coalesce(Core.cycle_id, Core.given_cycle_id)
    publisher = aliased(Owner)
    return (
        select(Core, Cycle.job_id, Cycle.index, Owner.name, publisher.name)
        .join(Cycle, Cycle.id == cycle_id)
        .join(Job, Job.id == Cycle.job_id)
        .join(Owner, Owner.id == Job.owner_id)
        .outerjoin(publisher, publisher.id == Core.published_by)
    )


def _one(session: Session, condition: ColumnElement[bool], core_id: str) -> CoreAbout:
    query = _query().where(condition).execution_options(populate_existing=True)
    found = session.execute(query).one_or_none()
    if found is None:
        raise NotFound(f"There is no core {core_id!r}.", id=core_id)
    return CoreAbout(*found)


def _is_version(version: str) -> list[ColumnElement[bool]]:
    if not version:
        return []
    number = int(version) if re.fullmatch("[1-9][0-9]{0,8}", version) else 0
    return [Core.published_version == number]


def _conditions(session: Session, wanted: CoreListFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [Job.deleted_at.is_(None)]
    if wanted.job_id is not None:
        find_job(session, wanted.job_id)
        conditions.append(Core.id.in_(find_core_ids(session, wanted.job_id)))
    if wanted.name is not None:
        if wanted.is_published is False:
            rule = "only published cores have one: leave it out, or is_published"
            raise InvalidConfig([FieldProblem("name", wanted.name, rule)])
        conditions.append(Core.name == wanted.name)
    if wanted.is_published is not None:
        conditions.append(Core.name.is_not(None) if wanted.is_published else Core.name.is_(None))
    return conditions


def _key(about: CoreAbout, by_name: bool) -> list[Any]:
    published_at = about.core.published_at
    return [published_at.isoformat(), about.core.id] if by_name and published_at else [about.core.id]


def _after(cursor: str, *, by_name: bool) -> list[Any]:
    if not by_name:
        return decode_cursor(cursor, str)
    moment, core_id = decode_cursor(cursor, str, str)
    try:
        return [datetime.fromisoformat(moment), core_id]
    except ValueError as error:
        raise BadRequest("The cursor is malformed.", param="cursor") from error
