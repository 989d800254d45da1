"""Where do queue, attempts, workers and sweepers stand, in numbers? What `GET /metrics` tells of the service.

All of it is read in one snapshot of the database, so that what moves from one table to another is counted
once. What only grows comes from the tallies, which no purge lowers; so every API process tells the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from dmsae.service.workers import ALIVE

STATEMENT_TIMEOUT_MS = 4000
"""A question that takes longer is given up: measuring must not be a load."""

WAITING = text("""
SELECT c.resource_class, c.priority_rank, count(*) AS n,
    max(date_part('epoch', clock_timestamp() - greatest(
        c.queued_at,
        c.not_before,
        CASE WHEN c.started_at IS NOT NULL THEN
            (SELECT max(a.closed_at) FROM attempts a WHERE a.cycle_id = c.id) END
    ))) AS oldest_wait_s
FROM cycles c
WHERE c.state = 'queued' AND NOT c.held
GROUP BY c.resource_class, c.priority_rank
""")
"""A cycle that was tried before waits since its last attempt ended, one in backoff not yet."""

RUNNING = text("""
SELECT c.resource_class, o.name AS owner, a.phase, count(*) AS n,
    sum(date_part('epoch', clock_timestamp() - a.opened_at)) AS device_s,
    max(date_part('epoch', clock_timestamp() - a.lease_expires_at)) AS overdue_s,
    sum((a.progress->>'tokens_per_s')::float8)
        FILTER (WHERE a.phase IN ('harvesting', 'training')) AS tokens_per_s
FROM attempts a JOIN cycles c ON c.id = a.cycle_id JOIN owners o ON o.id = c.owner_id
WHERE a.outcome IS NULL
GROUP BY c.resource_class, o.name, a.phase
""")

CLOSED = text("""
SELECT t.resource_class, o.name AS owner, t.outcome, t.code, t.n_attempts AS n, t.device_s
FROM attempt_tallies t JOIN owners o ON o.id = t.owner_id
""")

WORKERS = text("""
SELECT w.resource_class,
    CASE WHEN w.last_seen_at < clock_timestamp() - make_interval(secs => :alive_s) THEN 'gone'
        WHEN w.draining_at IS NOT NULL THEN 'draining'
        WHEN EXISTS (SELECT FROM attempts a WHERE a.worker_id = w.id AND a.outcome IS NULL) THEN 'busy'
        ELSE 'idle' END AS state,
    count(*) AS n,
    max(date_part('epoch', clock_timestamp() - w.last_seen_at)) AS unseen_s
FROM workers w
WHERE w.stopped_at IS NULL
GROUP BY 1, 2
""")

DONE = text("""
SELECT action, n, date_part('epoch', clock_timestamp() - last_at) AS age_s FROM action_tallies
""")

IS_PAUSED = text("SELECT EXISTS (SELECT FROM queue_pauses)")


class WaitingCount(NamedTuple):
    """Cycles of one class and priority that wait to be claimed."""

    resource_class: str
    priority_rank: int
    n: int
    oldest_wait_s: float


class RunningCount(NamedTuple):
    """Open attempts of one class, owner and phase."""

    resource_class: str
    owner: str
    phase: str
    n: int
    device_s: float
    overdue_s: float
    """Of the lease that ran out first; negative while all are alive."""
    tokens_per_s: float | None


class ClosedCount(NamedTuple):
    """Attempts that were ever closed, of one class, owner, outcome and error code."""

    resource_class: str
    owner: str
    outcome: str
    code: str
    n: int
    device_s: float


class WorkerCount(NamedTuple):
    """Workers of one class that have not stopped."""

    resource_class: str
    state: str
    """idle, busy, draining, or gone: not seen for a while."""
    n: int
    unseen_s: float
    """Since the one that was seen least lately was."""


class ActionCount(NamedTuple):
    """How often a sweeper or worker did something."""

    action: str
    n: int
    age_s: float
    """Since it was last done."""


@dataclass(frozen=True)
class QueueNumbers:
    """The service at one moment."""

    waiting: Sequence[WaitingCount]
    running: Sequence[RunningCount]
    closed: Sequence[ClosedCount]
    workers: Sequence[WorkerCount]
    done: Sequence[ActionCount]
    is_paused: bool


def read_numbers(session: Session) -> QueueNumbers:
    """Read all numbers in one snapshot; it must be the first thing that its transaction does.

    Raises:
        sqlalchemy.exc.OperationalError: it took longer than `STATEMENT_TIMEOUT_MS`.
    """
    session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    session.execute(text(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS}"))
    return QueueNumbers(
        waiting=[WaitingCount(row[0], row[1], row[2], max(0.0, row[3])) for row in _rows(session, WAITING)],
        running=[RunningCount(*row) for row in _rows(session, RUNNING)],
        closed=[ClosedCount(*row) for row in _rows(session, CLOSED)],
        workers=[WorkerCount(*row) for row in _rows(session, WORKERS, alive_s=ALIVE.total_seconds())],
        done=[ActionCount(*row) for row in _rows(session, DONE)],
        is_paused=bool(session.scalar(IS_PAUSED)),
    )


def _rows(session: Session, query: TextClause, **given: Any) -> Sequence[Any]:
    return session.execute(query, given).all()
