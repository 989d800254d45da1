"""Why does a queued cycle wait? In one sentence, from what the queue and its workers look like now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import JSON, func, literal_column, select
from sqlalchemy.orm import Session

from dmsae.service.queue_snapshots import Place
from dmsae.service.workers import ALIVE

GIB = 1 << 30
A_MOMENT_S = 15.0
"""Within which a free worker looks for work, whether it is woken or not."""
UNITS = ((86_400, "days"), (3600, "h"), (60, "min"))

STANDING = (
    "json_build_array("  # noqa: S608 - put together from constants
    " (SELECT json_build_array(p.reason) FROM queue_pauses p),"
    " (SELECT coalesce(json_agg(json_build_array("
    "   w.id, w.resource_class, w.memory_bytes, w.cache_keys, a.cache_key) ORDER BY w.id), '[]')"
    "  FROM workers w LEFT JOIN attempts a ON a.worker_id = w.id AND a.outcome IS NULL"
    "  WHERE w.stopped_at IS NULL AND w.draining_at IS NULL"
    f"  AND w.last_seen_at > clock_timestamp() - interval '{ALIVE.total_seconds()} s'),"
    " (SELECT coalesce(json_object_agg(o.id, json_build_array(o.name, r.n_running, o.max_running)), '{}')"
    "  FROM owners o CROSS JOIN LATERAL ("
    "   SELECT count(*) AS n_running FROM attempts a WHERE a.outcome IS NULL AND a.owner_id = o.id) r"
    "  WHERE r.n_running >= o.max_running))"
)
"""All that decides over queued cycles as one value, which goes along with a job that is shown waiting."""
LOOK = select(func.clock_timestamp(), literal_column(STANDING, JSON))


class LiveWorker(NamedTuple):
    """A worker that is there and takes cycles."""

    id: str
    resource_class: str
    memory_bytes: int | None
    cache_keys: list[str]
    running_key: str | None
    """Names the activations that it reads right now."""


class Pause(NamedTuple):
    """That nothing is claimed."""

    reason: str | None


class FullOwner(NamedTuple):
    """An owner that runs as many cycles as it may."""

    name: str
    n_running: int
    max_running: int


@dataclass(frozen=True)
class Standing:
    """What decides over all queued cycles at one moment."""

    now: datetime
    pause: Pause | None
    workers: Sequence[LiveWorker]
    full_owners: Mapping[str, FullOwner]
    """By their ids."""

    def workers_of(self, resource_class: str) -> list[LiveWorker]:
        """List the live workers of a class."""
        return [worker for worker in self.workers if worker.resource_class == resource_class]


def look(session: Session) -> Standing:
    """Take in the queue and its workers."""
    return standing_of(*session.execute(LOOK).one())


def standing_of(now: datetime, seen: Sequence[Any]) -> Standing:
    """Make it of what Postgres gave for `STANDING`."""
    pause, workers, full_owners = seen
    return Standing(
        now=now,
        pause=None if pause is None else Pause(*pause),
        workers=[LiveWorker(*worker) for worker in workers],
        full_owners={owner_id: FullOwner(*owner) for owner_id, owner in full_owners.items()},
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
        or _say_limit(standing.full_owners.get(cycle.owner_id))
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


def _say_limit(owner: FullOwner | None) -> str | None:
    if owner is None:
        return None
    return f"{owner.name} runs {owner.n_running} cycles, and may run {owner.max_running} at once."


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
