"""What does the whole queue look like: who waits, in which order and why, and what does each worker run?"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from dmsae.service.queue_snapshots import Place, find_places
from dmsae.service.queue_tables import QueueSnapshot
from dmsae.service.shares import WEEK, OwnerShare, count_queued, list_shares
from dmsae.service.tables import Attempt, Cycle, Job, Owner, Worker
from dmsae.service.waiting import Standing, look, say_why


class WaitingView(NamedTuple):
    """A queued cycle, where it stands, and why it waits."""

    cycle: Any
    owner: str
    place: Place
    why: str


class LineView(NamedTuple):
    """What waits for one class of devices, as it was last worked out."""

    resource_class: str
    taken_at: datetime
    n_queued: int
    waiting: list[WaitingView]


class WorkerView(NamedTuple):
    """A worker, and what it runs: a row of the attempt with its cycle and job, or None."""

    worker: Worker
    running: Any


class ShareView(NamedTuple):
    """An owner's turns."""

    share: OwnerShare
    n_queued: int
    part: float | None
    """Of all device time in the window; None while nobody used any."""
    week_s: float
    """Device-seconds used in the last 7 days."""
    week_part: float | None


@dataclass(frozen=True)
class QueueView:
    """The queue as it is shown."""

    is_paused: bool
    pause_reason: str | None
    lines: list[LineView]
    workers: list[WorkerView]
    owners: list[ShareView]


def view_queue(session: Session, *, limit: int) -> QueueView:
    """Show the first `limit` of every class in the order of claims, live workers, and owners with work."""
    standing = look(session)
    snapshots = session.execute(
        select(
            QueueSnapshot.resource_class,
            QueueSnapshot.taken_at,
            QueueSnapshot.n_queued,
            QueueSnapshot.cycle_ids[1:limit].label("first_ids"),
        ).order_by(QueueSnapshot.resource_class)
    ).all()
    return QueueView(
        is_paused=standing.pause is not None,
        pause_reason=standing.pause.reason if standing.pause is not None else None,
        lines=[
            LineView(name, taken_at, n_queued, _list_waiting(session, ids, standing))
            for name, taken_at, n_queued, ids in snapshots
        ],
        workers=_list_workers(session, [worker.id for worker in standing.workers]),
        owners=_list_owners(session, list_shares(session)),
    )


def _list_waiting(session: Session, ids: Sequence[str], standing: Standing) -> list[WaitingView]:
    """Show those that still wait."""
    columns = (
        Cycle.id,
        Cycle.job_id,
        Cycle.index.label("cycle_index"),
        Cycle.owner_id,
        Cycle.resource_class,
        Cycle.queued_at,
        Cycle.not_before,
        Cycle.state_reason,
        Cycle.memory_bytes,
        Cycle.cache_key,
        Job.name.label("job_name"),
        Job.priority,
        Job.held,
        Owner.name.label("owner"),
    )
    rows = session.execute(
        select(*columns)
        .join(Job, Job.id == Cycle.job_id)
        .join(Owner, Owner.id == Cycle.owner_id)
        .where(Cycle.id.in_(ids), Cycle.state == "queued")
    ).all()
    places = find_places(session, [row.id for row in rows])
    found = [
        WaitingView(
            row,
            row.owner,
            places[row.id],
            say_why(row, standing, places[row.id], is_held=row.held),
        )
        for row in rows
        if row.id in places
    ]
    return sorted(found, key=lambda view: view.place.position)


def _list_workers(session: Session, ids: Sequence[str]) -> list[WorkerView]:
    running = session.execute(
        select(
            Attempt.worker_id,
            Cycle.job_id,
            Job.name.label("job_name"),
            Owner.name.label("owner"),
            Cycle.index.label("cycle_index"),
            Attempt.number.label("attempt_number"),
            Attempt.phase,
            Attempt.opened_at,
        )
        .join(Cycle, Cycle.id == Attempt.cycle_id)
        .join(Job, Job.id == Cycle.job_id)
        .join(Owner, Owner.id == Job.owner_id)
        .where(Attempt.outcome.is_(None))
    ).all()
    by_worker = {row.worker_id: row for row in running}
    workers = session.scalars(select(Worker).where(Worker.id.in_(ids)).order_by(Worker.id))
    return [WorkerView(worker, by_worker.get(worker.id)) for worker in workers]


def _list_owners(session: Session, shares: Sequence[OwnerShare]) -> list[ShareView]:
    """Show the owners that have work or had some within a week."""
    n_queued = count_queued(session)
    week_s = {share.owner_id: share.device_s for share in list_shares(session, WEEK)}
    total_s, week_total_s = sum(share.device_s for share in shares), sum(week_s.values())
    views = [
        ShareView(
            share,
            n_queued.get(share.owner_id, 0),
            share.device_s / total_s if total_s else None,
            week_s.get(share.owner_id, 0.0),
            week_s.get(share.owner_id, 0.0) / week_total_s if week_total_s else None,
        )
        for share in shares
    ]
    return [view for view in views if view.share.device_s or view.week_s or view.n_queued]
