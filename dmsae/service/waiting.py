"""Why does a queued cycle wait? In one sentence, from what the queue and its workers look like now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dmsae.service.queue_snapshots import Place
from dmsae.service.queue_tables import QueuePause
from dmsae.service.shares import OwnerShare, list_shares
from dmsae.service.tables import Attempt, Worker
from dmsae.service.workers import ALIVE

GIB = 1 << 30
A_MOMENT_S = 15.0
"""Within which a free worker looks for work, whether it is woken or not."""
UNITS = ((86_400, "days"), (3600, "h"), (60, "min"))


class LiveWorker(NamedTuple):
    """A worker that is there and takes cycles."""

    id: str
    resource_class: str
    memory_bytes: int | None
    cache_keys: list[str]
    running_key: str | None
    """Names the activations that it reads right now."""


@dataclass(frozen=True)
class Standing:
    """What decides over all queued cycles at one moment."""

    now: datetime
    pause: QueuePause | None
    workers: Sequence[LiveWorker]
    shares: Mapping[str, OwnerShare]

    def workers_of(self, resource_class: str) -> list[LiveWorker]:
        """List the live workers of a class."""
        return [worker for worker in self.workers if worker.resource_class == resource_class]


def look(session: Session) -> Standing:
    """Take in the queue and its workers."""
    now = session.scalars(select(func.clock_timestamp())).one()
    columns = (Worker.id, Worker.resource_class, Worker.memory_bytes, Worker.cache_keys, Attempt.cache_key)
    rows = session.execute(
        select(*columns)
        .outerjoin(Attempt, (Attempt.worker_id == Worker.id) & Attempt.outcome.is_(None))
        .where(Worker.stopped_at.is_(None), Worker.last_seen_at > now - ALIVE, Worker.draining_at.is_(None))
        .order_by(Worker.id)
    )
    return Standing(
        now=now,
        pause=session.scalars(select(QueuePause)).one_or_none(),
        workers=[LiveWorker(*row) for row in rows],
        shares={share.owner_id: share for share in list_shares(session)},
    )


def say_why(cycle: Any, standing: Standing, place: Place | None, *, is_held: bool) -> str:
    """Say why a queued cycle is not running; `cycle` has the columns of the table that this reads."""
    if is_held:
        return "It is held, and waits until it is released."
    if standing.pause is not None:
        because = f": {standing.pause.reason}" if standing.pause.reason else ""
        return f"The whole queue is paused{because}."
    if cycle.not_before is not None and cycle.not_before > standing.now:
        why = cycle.state_reason or "An attempt broke off."
        return f"{why} The next one begins after {cycle.not_before.isoformat(timespec='seconds')}."
    workers = standing.workers_of(cycle.resource_class)
    if not workers:
        return f"No {cycle.resource_class} worker is running: start one with `dmsae worker`."
    return (
        _say_memory(cycle, workers)
        or _say_limit(standing.shares.get(cycle.owner_id))
        or _say_place(cycle, workers, place)
    )


def _say_memory(cycle: Any, workers: Sequence[LiveWorker]) -> str | None:
    sizes = [worker.memory_bytes for worker in workers]
    known = [size for size in sizes if size is not None]
    if cycle.memory_bytes is None or len(known) < len(sizes) or cycle.memory_bytes <= max(known):
        return None
    needed, largest = cycle.memory_bytes / GIB, max(known) / GIB
    what = f"{cycle.resource_class} device that is served"
    return f"It needs about {needed:.1f} GiB, and the largest {what} has {largest:.1f}."


def _say_limit(share: OwnerShare | None) -> str | None:
    if share is None or not share.is_full:
        return None
    return f"{share.name} runs {share.n_running} cycles, and may run {share.max_running} at once."


def _say_place(cycle: Any, workers: Sequence[LiveWorker], place: Place | None) -> str:
    waits = f"It waits for a free {cycle.resource_class} worker"
    if place is None:
        return f"{waits}; its place in line is not known yet."
    when = _say_when(place.starts_in_s)
    if place.position:
        first = "1 queued cycle comes" if place.position == 1 else f"{place.position} queued cycles come"
        return f"{waits}; {first} first, and {when}."
    if cycle.cache_key is not None and any(worker.running_key == cycle.cache_key for worker in workers):
        waits = f"{waits}, for a while for the one that has its activations"
    return f"{waits}; it comes next, and {when}."


def _say_when(starts_in_s: float | None) -> str:
    if starts_in_s is None:
        return "when it begins cannot be told yet"
    if starts_in_s < A_MOMENT_S:
        return "begins within moments"
    unit_s, unit = next(((n, name) for n, name in UNITS if starts_in_s >= 2 * n), (1, "s"))
    return f"begins in about {starts_in_s / unit_s:.0f} {unit}"
