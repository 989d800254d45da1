"""Where does each queued cycle stand in line? The sweeper works it out now and then, and others look it up.

Shares, limits and workers are those of the moment. Lengths come from attempts that succeeded within the
window, a job's own before its owner's before everybody's; where too few did, or the queue is paused, nothing
is said of times.
"""

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import TIMESTAMP, Double, Integer, delete, func, lateral, select, text, true
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from dmsae.service.claims import USAGE_WINDOW, QueueRules
from dmsae.service.queue_order import (
    N_PLACES,
    Lengths,
    Waiting,
    list_starts,
    mean_length,
    order_claims,
)
from dmsae.service.queue_tables import QueuePause, QueueSnapshot
from dmsae.service.shares import OwnerShare, list_shares
from dmsae.service.tables import Attempt, Cycle, Job, Owner, Worker
from dmsae.service.workers import ALIVE

LEAST_ATTEMPTS = 3
"""From how many attempts of one or of all owners a mean length is taken."""


def take_snapshots(session: Session, rules: QueueRules) -> float:
    """Work out the lines of all classes and store them; give the seconds that it took.

    All is read as of one moment, so that who waits, whose it is and what each used agree.
    """
    begun = time.monotonic()
    session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    known = select(Cycle.resource_class).where(Cycle.state == "queued").distinct()
    classes = session.scalars(known).all()
    session.execute(delete(QueueSnapshot).where(QueueSnapshot.resource_class.not_in(classes)))
    now = session.scalars(select(func.clock_timestamp())).one()
    shares = {share.owner_id: share for share in list_shares(session)}
    for resource_class in classes:
        _take_snapshot(session, resource_class, rules, now=now, shares=shares)
    return time.monotonic() - begun


def _take_snapshot(
    session: Session,
    resource_class: str,
    rules: QueueRules,
    *,
    now: datetime,
    shares: Mapping[str, OwnerShare],
) -> None:
    lengths = _mean_lengths(session, resource_class, now)
    waiting = _list_waiting(session, resource_class, now=now, shares=shares)
    order = order_claims(waiting, shares, rules, now=now, lengths=lengths)
    starts = list_starts(order, _free_in_s(session, resource_class, now, lengths), lengths)
    if session.scalar(select(QueuePause.id)) is not None:
        starts = [None] * len(order)
    n_queued = session.scalars(
        select(func.count()).where(Cycle.state == "queued", Cycle.resource_class == resource_class)
    ).one()
    values = {
        "taken_at": now,
        "n_queued": n_queued,
        "cycle_ids": [cycle.id for cycle in order],
        "starts_in_s": starts,
    }
    snapshot = insert(QueueSnapshot).values(resource_class=resource_class, **values)
    session.execute(snapshot.on_conflict_do_update(index_elements=["resource_class"], set_=values))


def _list_waiting(
    session: Session, resource_class: str, *, now: datetime, shares: Mapping[str, OwnerShare]
) -> list[Waiting]:
    columns = (Cycle.id, Cycle.job_id, Cycle.owner_id, Cycle.priority_rank, Cycle.queued_at)
    barriers = (Cycle.memory_bytes, Cycle.not_before, (Cycle.held | Job.held).label("held"))
    of_owner = lateral(
        select(*columns, *barriers)
        .join(Job, Job.id == Cycle.job_id)
        .where(Cycle.owner_id == Owner.id, Cycle.state == "queued", Cycle.resource_class == resource_class)
        .order_by(Cycle.priority_rank, Cycle.queued_at, Cycle.id)
        .limit(N_PLACES)
    )
    rows = session.execute(select(*of_owner.c).select_from(Owner).join(of_owner, true())).all()
    largest = _largest_memory(session, resource_class, now)
    full = {share.owner_id for share in shares.values() if share.is_full}
    return [
        Waiting(
            row.id,
            row.job_id,
            row.owner_id,
            row.priority_rank,
            row.queued_at,
            row.held
            or row.owner_id in full
            or (row.not_before is not None and row.not_before > now)
            or (largest is not None and row.memory_bytes is not None and row.memory_bytes > largest),
        )
        for row in rows
    ]


def _live(resource_class: str, now: datetime) -> tuple[Any, ...]:
    return (
        Worker.resource_class == resource_class,
        Worker.stopped_at.is_(None),
        Worker.last_seen_at > now - ALIVE,
        Worker.draining_at.is_(None),
    )


def _largest_memory(session: Session, resource_class: str, now: datetime) -> int | None:
    """Give the memory of the largest device that is served; None where one tells none, or none is served."""
    sizes = session.scalars(select(Worker.memory_bytes).where(*_live(resource_class, now))).all()
    known = [size for size in sizes if size is not None]
    return max(known) if known and len(known) == len(sizes) else None


def _mean_lengths(session: Session, resource_class: str, now: datetime) -> dict[str | None, float]:
    """Give the mean length of the last attempts by job, by owner, and under None of all; only of enough."""
    length = func.extract("epoch", Attempt.closed_at - Attempt.opened_at)
    rows = session.execute(
        select(Cycle.job_id, Cycle.owner_id, func.count(), func.sum(length))
        .join(Cycle, Cycle.id == Attempt.cycle_id)
        .where(
            Attempt.closed_at > now - USAGE_WINDOW,
            Attempt.outcome == "succeeded",
            Cycle.resource_class == resource_class,
        )
        .group_by(Cycle.job_id, Cycle.owner_id)
    ).all()
    found: dict[str | None, float] = {job_id: float(seconds / n) for job_id, _, n, seconds in rows}
    sums: dict[str | None, tuple[int, float]] = {}
    for _, owner_id, n, seconds in rows:
        for of in (owner_id, None):
            n_before, s_before = sums.get(of, (0, 0.0))
            sums[of] = (n_before + n, s_before + float(seconds))
    return found | {of: seconds / n for of, (n, seconds) in sums.items() if n >= LEAST_ATTEMPTS}


def _free_in_s(session: Session, resource_class: str, now: datetime, lengths: Lengths) -> list[float]:
    """Give when each live worker is free; one of which that cannot be told is left out."""
    rows = session.execute(
        select(
            Attempt.opened_at,
            Attempt.progress,
            Attempt.progress_at,
            Attempt.owner_id,
            Attempt.id,
            Cycle.job_id,
        )
        .select_from(Worker)
        .outerjoin(Attempt, (Attempt.worker_id == Worker.id) & Attempt.outcome.is_(None))
        .outerjoin(Cycle, Cycle.id == Attempt.cycle_id)
        .where(*_live(resource_class, now))
    )
    free = []
    for row in rows:
        left_s = 0.0 if row.id is None else _left_s(row, now, lengths)
        if left_s is not None:
            free.append(left_s)
    return free


def _left_s(attempt: Any, now: datetime, lengths: Lengths) -> float | None:
    told = (attempt.progress or {}).get("time_left_s")
    if isinstance(told, int | float):
        length: float | None = float(told)
        since = attempt.progress_at
    else:
        length, since = mean_length(lengths, attempt.job_id, attempt.owner_id), attempt.opened_at
    return None if length is None else max(0.0, length - float((now - since).total_seconds()))


class Place(NamedTuple):
    """Where a queued cycle stood when its class was last looked at."""

    position: int
    """How many come first."""
    starts_in_s: float | None
    """From now on, as far as that can be told."""
    taken_at: datetime


_START = (
    "CASE WHEN {0} IS NOT NULL"
    " THEN greatest(0, {0} - extract(epoch FROM clock_timestamp() - s.taken_at)::float8) END AS starts_in_s"
)
PLACES = text(
    f"SELECT place.id, place.number - 1 AS position, s.taken_at, {_START.format('place.starts_in_s')}"  # noqa: S608
    " FROM queue_snapshots s, unnest(s.cycle_ids, s.starts_in_s)"
    " WITH ORDINALITY AS place (id, starts_in_s, number) WHERE place.id = ANY(:ids)"
)
PLACE = (
    text(
        f"SELECT p.number - 1 AS position, {_START.format('s.starts_in_s[p.number]')}, s.taken_at"  # noqa: S608
        " FROM queue_snapshots s CROSS JOIN LATERAL ("
        "  SELECT array_position(s.cycle_ids, current.id) AS number OFFSET 0) p"
        " WHERE current.state = 'queued' AND s.resource_class = current.resource_class"
        " AND p.number IS NOT NULL"
    )
    .columns(position=Integer, starts_in_s=Double, taken_at=TIMESTAMP(timezone=True))
    .lateral("place")
)
"""The `Place` of one cycle, which the query around it names `current`."""


def find_places(session: Session, cycle_ids: Sequence[str]) -> dict[str, Place]:
    """Look up where cycles stand; those that the last snapshot does not know are left out."""
    if not cycle_ids:
        return {}
    rows = session.execute(PLACES, {"ids": list(cycle_ids)})
    return {row.id: Place(row.position, row.starts_in_s, row.taken_at) for row in rows}
