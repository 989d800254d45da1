"""What happened to a job, in order.

An event is written in the transaction of what it tells. Its number is drawn by updating the job's row, which
also locks it: events of one job can never commit out of order. With it goes a hint to whoever watches.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ARRAY, BigInteger, Connection, Text, bindparam, func, insert, select, true, update
from sqlalchemy.orm import Session

from dmsae.errors import NotFound
from dmsae.service.tables import FINAL_JOB_STATES, Event, Job

EVENTS_CHANNEL = "dmsae_events"
"""Of Postgres' NOTIFY: a hint that a job has news, its id; nothing depends on its arrival."""

FIRST_EVENT = {"event_seq": 1, "version": 2}
"""A job as it is stored together with its first event, by `begin_histories`."""


@dataclass(frozen=True, eq=False)
class ToldEvent:
    """An event as it is told to whoever watches: one object for all, so that it is put into words once."""

    seq: int
    kind: str
    message: str
    cycle_index: int | None
    attempt_number: int | None
    data: dict[str, Any]
    created_at: datetime


class Head(NamedTuple):
    """What of a job says whether there is news."""

    version: int
    event_seq: int
    has_ended: bool
    """Whether nothing more will happen, unless somebody wants it to; so too where the job is gone."""


GONE = Head(0, 0, has_ended=True)


def append_event(
    session: Session,
    job_id: str,
    kind: str,
    message: str,
    *,
    cycle_index: int | None = None,
    attempt_number: int | None = None,
    data: dict[str, Any] | None = None,
) -> int:
    """Write one event of a job and return its sequence number; the job's `version` grows with it.

    Raises:
        NotFound: there is no such job.
    """
    draw = (
        update(Job)
        .where(Job.id == job_id)
        .values(event_seq=Job.event_seq + 1, version=Job.version + 1)
        .returning(Job.event_seq)
        .execution_options(synchronize_session=False)
    )
    seq = session.scalar(draw)
    if seq is None:
        raise NotFound(f"There is no job {job_id!r}.", id=job_id)
    session.execute(
        insert(Event).values(
            job_id=job_id,
            seq=seq,
            kind=kind,
            message=message,
            cycle_index=cycle_index,
            attempt_number=attempt_number,
            data=data or {},
        )
    )
    session.execute(select(func.pg_notify(EVENTS_CHANNEL, job_id)))
    return seq


def begin_histories(session: Session, told: Mapping[str, tuple[str, str, dict[str, Any]]]) -> None:
    """Write the first event of jobs that this very transaction stores: for each its kind, message and data.

    Each has drawn its number already (`FIRST_EVENT`), and nobody can watch it yet, so nobody gets a hint.
    """
    names = ("kind", "message", "data")
    rows = [
        {"job_id": job_id, "seq": FIRST_EVENT["event_seq"], **dict(zip(names, event, strict=True))}
        for job_id, event in told.items()
    ]
    session.connection().execute(insert(Event), rows)


def read_heads(connection: Connection, job_ids: Collection[str]) -> dict[str, Head]:
    """Give the heads of jobs; one that is not there, or was deleted, is `GONE`."""
    columns = (Job.id, Job.version, Job.event_seq, Job.state)
    wanted = Job.id == func.any(bindparam("ids", list(job_ids), ARRAY(Text)))
    rows = connection.execute(select(*columns).where(wanted, Job.deleted_at.is_(None)))
    found = {row.id: Head(row.version, row.event_seq, row.state in FINAL_JOB_STATES) for row in rows}
    return {job_id: found.get(job_id, GONE) for job_id in job_ids}


def read_events(
    connection: Connection, places: Iterable[tuple[str, int]], *, limit: int
) -> dict[tuple[str, int], list[ToldEvent]]:
    """Give for each place, a job and a number, the events behind it in order, `limit` of each at most."""
    job_ids, numbers = zip(*places, strict=True)
    place = (
        func.unnest(
            bindparam("ids", list(job_ids), ARRAY(Text)),
            bindparam("numbers", list(numbers), ARRAY(BigInteger)),
        )
        .table_valued("job_id", "number")
        .render_derived(name="place")
    )
    columns = [getattr(Event, field.name) for field in fields(ToldEvent)]
    behind = (
        select(*columns)
        .where(Event.job_id == place.c.job_id, Event.seq > place.c.number)
        .order_by(Event.seq)
        .limit(limit)
        .lateral("told")
    )
    rows = connection.execute(
        select(place.c.job_id, place.c.number, *behind.c)
        .select_from(place.join(behind, true()))
        .order_by(place.c.job_id, place.c.number, behind.c.seq)
    )
    found = defaultdict(list)
    for job_id, number, *told in rows:
        found[job_id, number].append(ToldEvent(*told))
    return found
