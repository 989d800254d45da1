"""From which checkpoint may another attempt go on, and which are to go?

A row is written only once all bytes are stored, the manifest last, and only by the attempt that is open.
Going on follows the newest row, never a listing. When a checkpoint is due is the trainer's business.
"""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from dmsae.service.states import FINAL_CYCLE_STATES, Held
from dmsae.service.tables import Attempt, Checkpoint, Cycle

KEPT = 2
"""Newest checkpoints of a cycle that stay."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """What an attempt has put into the store."""

    step: int
    object_prefix: str
    manifest_sha256: str | None
    """None where its upload broke off: nobody may go on from it, and it is to be deleted."""


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that an attempt goes on from."""

    step: int
    attempt_number: int
    """The attempt that left it."""
    object_prefix: str
    manifest_sha256: str


def record_checkpoint(session: Session, held: Held, stored: StoredCheckpoint) -> None:
    """Store a checkpoint of an attempt whose row, and its cycle's, is locked; recorded twice is once.

    Each lies beyond the one that its attempt began from, so failed attempts are counted anew from here.

    Mutates: all but the newest checkpoints of the cycle are superseded.
    """
    is_whole = stored.manifest_sha256 is not None
    session.execute(
        insert(Checkpoint)
        .values(
            attempt_id=held.attempt_id,
            step=stored.step,
            cycle_id=held.cycle_id,
            fence=held.fence,
            object_prefix=stored.object_prefix,
            manifest_sha256=stored.manifest_sha256,
            superseded_at=None if is_whole else func.now(),
        )
        .on_conflict_do_nothing()
    )
    if not is_whole:
        return
    session.execute(
        update(Cycle)
        .where(Cycle.id == held.cycle_id, Cycle.n_failed_attempts > 0)
        .values(n_failed_attempts=0)
        .execution_options(synchronize_session=False)
    )
    supersede_checkpoints(session, held.cycle_id, n_kept=KEPT)


def newest_checkpoint(session: Session, cycle_id: str) -> ResumePoint | None:
    """Give the checkpoint that the next attempt at a cycle goes on from; None if it begins."""
    row = session.execute(
        select(Checkpoint.step, Attempt.number, Checkpoint.object_prefix, Checkpoint.manifest_sha256)
        .join(Attempt, Attempt.id == Checkpoint.attempt_id)
        .where(Checkpoint.cycle_id == cycle_id, Checkpoint.superseded_at.is_(None))
        .order_by(Checkpoint.fence.desc(), Checkpoint.step.desc())
        .limit(1)
    ).one_or_none()
    if row is None or row.manifest_sha256 is None:
        return None
    return ResumePoint(row.step, row.number, row.object_prefix, row.manifest_sha256)


def supersede_checkpoints(session: Session, cycle_id: str, *, n_kept: int = 0) -> None:
    """Leave a cycle its newest checkpoints; the sweeper deletes the others."""
    kept = (
        select(Checkpoint.object_prefix)
        .where(Checkpoint.cycle_id == cycle_id, Checkpoint.superseded_at.is_(None))
        .order_by(Checkpoint.fence.desc(), Checkpoint.step.desc())
        .limit(n_kept)
    )
    session.execute(
        update(Checkpoint)
        .where(Checkpoint.cycle_id == cycle_id, Checkpoint.superseded_at.is_(None))
        .where(Checkpoint.object_prefix.not_in(kept))
        .values(superseded_at=func.now())
        .execution_options(synchronize_session=False)
    )


def supersede_ended(session: Session, *, ended_before_s: float, limit: int) -> int:
    """Supersede the checkpoints of cycles that ended so long ago, whichever way; give how many."""
    since = func.clock_timestamp() - timedelta(seconds=ended_before_s)
    ended = (
        select(Checkpoint.object_prefix)
        .join(Cycle, Cycle.id == Checkpoint.cycle_id)
        .where(Checkpoint.superseded_at.is_(None), Cycle.state.in_(FINAL_CYCLE_STATES))
        .where(Cycle.finished_at < since)
        .limit(limit)
    )
    superseded = session.scalars(
        update(Checkpoint)
        .where(Checkpoint.object_prefix.in_(ended), Checkpoint.superseded_at.is_(None))
        .values(superseded_at=func.now())
        .returning(Checkpoint.step)
        .execution_options(synchronize_session=False)
    )
    return len(superseded.all())


def superseded_checkpoints(session: Session, *, limit: int) -> list[str]:
    """List the prefixes of checkpoints whose objects are to go, the longest superseded first."""
    query = select(Checkpoint.object_prefix).where(Checkpoint.superseded_at.is_not(None))
    return list(
        session.scalars(query.order_by(Checkpoint.superseded_at, Checkpoint.object_prefix).limit(limit))
    )


def forget_checkpoint(session: Session, prefix: str) -> None:
    """Remove the row of a checkpoint whose objects are gone."""
    session.execute(
        delete(Checkpoint).where(Checkpoint.object_prefix == prefix, Checkpoint.superseded_at.is_not(None))
    )
