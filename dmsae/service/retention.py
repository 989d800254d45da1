"""How long does an owner keep jobs that have ended?"""

import re

from sqlalchemy import ColumnElement, case, func, select, update
from sqlalchemy.orm import Session

from dmsae.errors import FieldProblem, InvalidConfig, NotFound
from dmsae.service.deleting import is_given_to_unfinished, make_tombstone
from dmsae.service.publishing import has_published_core, published_names
from dmsae.service.tables import Job, Owner

MOST_DAYS = 36_500
FOR_EVER = 0
"""As an owner's setting: never, whatever the service's default is."""


def read_days(text: str) -> int | None:
    """Read an owner's setting: a number of days, `none` for ever, or `default`.

    Raises:
        InvalidConfig: it is none of these.
    """
    words = {"none": FOR_EVER, "default": None}
    if text in words:
        return words[text]
    if not (re.fullmatch("[0-9]{1,5}", text) and 0 < int(text) <= MOST_DAYS):
        rule = f"must be 1 to {MOST_DAYS} days, 'none' (never) or 'default' (DMSAE_RETENTION_DAYS)"
        raise InvalidConfig([FieldProblem("days", text[:50], rule)])
    return int(text)


def set_retention(session: Session, owner_name: str, days: int | None) -> None:
    """Set after how many days an owner's jobs are deleted: 0 never, None as the service's settings say.

    Raises:
        NotFound: there is no such owner.
        InvalidConfig: the number of days is out of bounds.
    """
    if days is not None and not 0 <= days <= MOST_DAYS:
        raise InvalidConfig([FieldProblem("days", days, f"must be 0 (never) to {MOST_DAYS}")])
    found = session.scalar(
        update(Owner).where(Owner.name == owner_name).values(retention_days=days).returning(Owner.id)
    )
    if found is None:
        raise NotFound(f"There is no owner {owner_name!r}.", param="owner")


def retention_of(session: Session, owner_id: str, *, default_days: int | None) -> int | None:
    """Give after how many days an owner's jobs are deleted; None: never."""
    days = session.scalar(select(Owner.retention_days).where(Owner.id == owner_id))
    return (default_days if days is None else days) or None


def note_expiry(session: Session, *, default_days: int | None, limit: int) -> int:
    """Write into jobs when they will be deleted, where something else stands; give how many changed."""
    wanted = _expires_at(default_days)
    is_outdated = (Job.deleted_at.is_(None), Job.expires_at.is_distinct_from(wanted))
    found = (
        select(Job.id)
        .join(Owner, Owner.id == Job.owner_id)
        .where(*is_outdated)
        .order_by(Job.id)
        .limit(limit)
        .with_for_update(of=Job.__table__, skip_locked=True, key_share=True)
    )
    changed = session.execute(
        update(Job)
        .where(Job.id.in_(found), Owner.id == Job.owner_id, *is_outdated)
        .values(expires_at=wanted, version=Job.version + 1)
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    return len(changed.all())


def delete_expired(session: Session, *, limit: int) -> list[str]:
    """Delete jobs whose time is over, and give their ids.

    Not those from whose core an unfinished job starts, or of which a core is published.
    """
    found = (
        select(Job.id)
        .where(
            Job.deleted_at.is_(None),
            Job.expires_at < func.now(),
            ~is_given_to_unfinished(),
            ~has_published_core(),
        )
        .order_by(Job.id)
        .limit(limit)
        .with_for_update(of=Job.__table__, skip_locked=True, key_share=True)
    )
    expired = session.scalars(found).all()
    # one may have been published between the look and the lock
    free = [job_id for job_id in expired if not published_names(session, job_id)]
    return [job_id for job_id in free if make_tombstone(session, job_id)]


def _expires_at(default_days: int | None) -> ColumnElement[object]:
    """Null while a job has not ended, and where it is kept for ever: as its owner says, or as published."""
    days = func.coalesce(Owner.retention_days, default_days or FOR_EVER)
    return case(
        (days == FOR_EVER, None),
        (has_published_core(), None),
        else_=Job.finished_at + func.make_interval(0, 0, 0, days),
    )
