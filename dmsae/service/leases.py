"""Is this attempt still the one?

An open attempt lives by its lease, always by the database's clock. Renewing one that has expired but is still
open succeeds: only the sweeper closes it, and only after watching it expired for one whole lease.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from dmsae.service.checkpoints import StoredCheckpoint, record_checkpoint
from dmsae.service.states import Held, lock_attempt, stale, tell
from dmsae.service.tables import Attempt, Cycle, Job, MetricPoint

PointValue = Literal[
    "loss",
    "aux_loss",
    "l0",
    "l0_core",
    "explained_variance",
    "explained_variance_first",
    "dead_fraction",
    "clipped_fraction",
    "lr",
    "tokens_per_s",
]
"""What a progress line says that is kept for each step."""
POINT_VALUES: tuple[PointValue, ...] = get_args(PointValue)


@dataclass(frozen=True)
class Report:
    """What a trainer said since its supervisor's last heartbeat; None leaves what is stored."""

    phase: str | None = None
    progress: dict[str, Any] | None = None
    points: tuple[dict[str, Any], ...] = ()
    """Progress lines to keep as metric points, in order of steps."""
    events: tuple[dict[str, Any], ...] = ()
    """Event lines: kind, message, data."""
    log_tail: str | None = None
    checkpoints: tuple[StoredCheckpoint, ...] = ()
    """Checkpoints whose upload has ended, in order."""

    @property
    def is_visible(self) -> bool:
        """Whether it writes to the job's row, which then is locked first."""
        return self.phase is not None or self.progress is not None or bool(self.events)


@dataclass(frozen=True)
class LeaseState:
    """What the supervisor learns by renewing."""

    is_cancelling: bool


@dataclass(frozen=True)
class ExpiredLease:
    """An open attempt whose lease has run out, as the sweeper sees it."""

    held: Held
    lease_expires_at: datetime


def renew(session: Session, held: Held, *, lease_s: float, report: Report) -> LeaseState:
    """Extend the lease of an open attempt and store what its trainer reported.

    Raises:
        StaleAttempt: the attempt is closed or its number is another's; nothing is stored.
    """
    if report.checkpoints:
        lock_attempt(session, held)
    state = _job_state(session, held.job_id, is_changed=report.is_visible)
    values: dict[str, Any] = {"lease_expires_at": func.clock_timestamp() + timedelta(seconds=lease_s)}
    for name in ("phase", "progress", "log_tail"):
        if getattr(report, name) is not None:
            values[name] = getattr(report, name)
    if report.progress is not None:
        values["progress_at"] = func.clock_timestamp()
    renewed = session.execute(
        update(Attempt)
        .where(Attempt.id == held.attempt_id, Attempt.fence == held.fence, Attempt.outcome.is_(None))
        .values(values)
        .returning(Attempt.id)
        .execution_options(synchronize_session=False)
    )
    if renewed.one_or_none() is None:
        raise stale(held)
    if report.points:
        _add_points(session, held, report.points)
    for stored in report.checkpoints:
        record_checkpoint(session, held, stored)
    for event in report.events:
        tell(session, held, event["kind"], event["message"], data=event.get("data"))
    return LeaseState(is_cancelling=state == "cancelling")


def require_open(session: Session, held: Held) -> None:
    """Refuse to go on for an attempt that is not the open one; its row stays locked.

    Raises:
        StaleAttempt: the attempt is closed or its number is another's.
    """
    found = session.scalar(
        select(Attempt.id)
        .where(Attempt.id == held.attempt_id, Attempt.fence == held.fence, Attempt.outcome.is_(None))
        .with_for_update(key_share=True)
    )
    if found is None:
        raise stale(held)


def find_expired(session: Session) -> list[ExpiredLease]:
    """List the open attempts whose lease has run out by the database's clock."""
    rows = session.execute(
        select(
            Cycle.job_id,
            Cycle.id,
            Cycle.index,
            Attempt.id,
            Attempt.number,
            Attempt.fence,
            Cycle.resource_class,
            Attempt.lease_expires_at,
        )
        .join(Cycle, Cycle.id == Attempt.cycle_id)
        .where(Attempt.outcome.is_(None), Attempt.lease_expires_at < func.clock_timestamp())
        .order_by(Attempt.fence)
    )
    return [ExpiredLease(Held(*row[:7]), row.lease_expires_at) for row in rows]


def is_still_expired(session: Session, expired: ExpiredLease) -> bool:
    """Ask whether this attempt is open and was not renewed since it was seen; its row stays locked."""
    found = session.scalar(
        select(Attempt.id)
        .where(
            Attempt.id == expired.held.attempt_id,
            Attempt.outcome.is_(None),
            Attempt.lease_expires_at == expired.lease_expires_at,
        )
        .with_for_update(key_share=True)
    )
    return found is not None


def _job_state(session: Session, job_id: str, *, is_changed: bool) -> str | None:
    if not is_changed:
        return session.scalar(select(Job.state).where(Job.id == job_id))
    return session.scalar(
        update(Job)
        .where(Job.id == job_id)
        .values(version=Job.version + 1)
        .returning(Job.state)
        .execution_options(synchronize_session=False)
    )


def _add_points(session: Session, held: Held, points: tuple[dict[str, Any], ...]) -> None:
    """Store metric points; the first ones of a new attempt replace all later ones of earlier attempts."""
    by_step = {int(point["step"]): point for point in points}
    session.execute(
        delete(MetricPoint).where(
            MetricPoint.cycle_id == held.cycle_id,
            MetricPoint.fence < held.fence,
            MetricPoint.step >= min(by_step),
        )
    )
    rows = [
        {
            "cycle_id": held.cycle_id,
            "step": step,
            "fence": held.fence,
            "n_tokens": int(by_step[step].get("n_tokens") or 0),
            **{name: by_step[step].get(name) for name in POINT_VALUES},
        }
        for step in sorted(by_step)
    ]
    upsert = insert(MetricPoint)
    changed = {name: upsert.excluded[name] for name in ("fence", "n_tokens", *POINT_VALUES)}
    session.execute(
        upsert.on_conflict_do_update(
            index_elements=["cycle_id", "step"],
            set_=changed,
            where=MetricPoint.fence <= upsert.excluded.fence,
        ),
        rows,
    )
