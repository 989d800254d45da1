"""Which cycle does this worker run now?

One function decides for all workers, one after the other, under an advisory lock: so each decision sees all
claims before it, which is what fair sharing needs. A cycle that cannot be had at once is passed over.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, func, insert, lateral, or_, select, text, true
from sqlalchemy.orm import Session

from dmsae.config import SPEC_VERSION
from dmsae.service.ids import new_id
from dmsae.service.states import Held, move_cycle, move_job, tell
from dmsae.service.tables import FENCES, Artifact, Attempt, Core, Cycle, Job, Owner

CLAIM_LOCK = 0x646D73_01
"""Key of the advisory lock under which claims are made."""

USAGE_WINDOW = timedelta(hours=24)
"""How far back device time counts when owners take turns."""

LEAST_CHARGE_S = 1.0
"""What an attempt costs its owner at least, so that owners of very short cycles take turns too."""


@dataclass(frozen=True)
class StoredFile:
    """An object to fetch: its name in the cycle's folder, where it lies, and what it must be."""

    name: str
    object_key: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Claim(Held):
    """One attempt at one cycle, and all that its supervisor needs to know."""

    spec: dict[str, Any]
    """A `CycleSpec`."""
    input_core_id: str | None
    input_files: tuple[StoredFile, ...]
    """The files of the core that the cycle starts from; none in cycle 0."""
    time_limit_s: int | None


def claim_cycle(
    session: Session, *, worker_id: str, resource_class: str, lease_s: float, celery_task_id: str | None
) -> Claim | None:
    """Open an attempt at the best cycle that this worker may run; None if there is none.

    Owners take turns by priority, then by the least device time used in the window, running work counted;
    within an owner priority and age decide. Held jobs, cycles in backoff, specs of a newer version and jobs
    whose row is locked are passed over.

    Mutates: the cycle runs, its job too, an attempt is open, events tell it.
    """
    session.execute(select(func.pg_advisory_xact_lock(CLAIM_LOCK)))
    for owner_id in session.scalars(_owners_in_turn(resource_class)).all():
        best = session.execute(_best_cycle(owner_id, resource_class)).first()
        if best is not None:
            return _open_attempt(
                session, best, worker_id=worker_id, lease_s=lease_s, celery_task_id=celery_task_id
            )
    return None


def is_claimable(resource_class: str | None = None) -> ColumnElement[bool]:
    """Give the condition on `cycles` joined with `jobs` under which a cycle may be claimed now."""
    conditions = [
        Cycle.state == "queued",
        Cycle.spec_version <= SPEC_VERSION,
        or_(Cycle.not_before.is_(None), Cycle.not_before <= func.clock_timestamp()),
        Job.state.in_(("queued", "running")),
        Job.held.is_(False),
    ]
    if resource_class is not None:
        conditions.append(Cycle.resource_class == resource_class)
    return and_(*conditions)


def _owners_in_turn(resource_class: str) -> Select[str]:
    first = lateral(
        select(Cycle.priority_rank, Cycle.queued_at)
        .join(Job, Job.id == Cycle.job_id)
        .where(Cycle.owner_id == Owner.id, is_claimable(resource_class))
        .order_by(Cycle.priority_rank, Cycle.queued_at)
        .limit(1)
    )
    now = func.clock_timestamp()
    begin = func.greatest(Attempt.opened_at, now - USAGE_WINDOW)
    seconds = func.extract("epoch", func.coalesce(Attempt.closed_at, now) - begin)
    usage = (
        select(Cycle.owner_id, func.sum(func.greatest(seconds, LEAST_CHARGE_S)).label("device_s"))
        .join(Cycle, Cycle.id == Attempt.cycle_id)
        .where(or_(Attempt.closed_at.is_(None), Attempt.closed_at > now - USAGE_WINDOW))
        .group_by(Cycle.owner_id)
        .subquery()
    )
    return (
        select(Owner.id)
        .join(first, true())
        .outerjoin(usage, usage.c.owner_id == Owner.id)
        .order_by(first.c.priority_rank, func.coalesce(usage.c.device_s, 0), first.c.queued_at, Owner.id)
    )


def _best_cycle(owner_id: str, resource_class: str) -> Select[Any]:
    return (
        select(
            Cycle.id,
            Cycle.job_id,
            Cycle.index.label("cycle_index"),
            Cycle.resource_class,
            Cycle.input_core_id,
            Cycle.spec_version,
            Job.config,
        )
        .join(Job, Job.id == Cycle.job_id)
        .where(Cycle.owner_id == owner_id, is_claimable(resource_class))
        .order_by(Cycle.priority_rank, Cycle.queued_at, Cycle.index, Cycle.id)
        .limit(1)
        .with_for_update(of=[Job.__table__, Cycle.__table__], skip_locked=True, key_share=True)
    )


def _open_attempt(
    session: Session, best: Row[Any], *, worker_id: str, lease_s: float, celery_task_id: str | None
) -> Claim:
    number = session.scalars(
        select(func.coalesce(func.max(Attempt.number), 0) + 1).where(Attempt.cycle_id == best.id)
    ).one()
    claim = Claim(
        job_id=best.job_id,
        cycle_id=best.id,
        cycle_index=best.cycle_index,
        attempt_id=new_id("attempt"),
        attempt_number=number,
        fence=session.scalars(select(FENCES.next_value())).one(),
        resource_class=best.resource_class,
        spec={
            "spec_version": best.spec_version,
            "job_id": best.job_id,
            "cycle_index": best.cycle_index,
            "config": best.config,
        },
        input_core_id=best.input_core_id,
        input_files=_core_files(session, best.input_core_id),
        time_limit_s=best.config.get("time_limit_s"),
    )
    if move_job(session, claim.job_id, "running"):
        tell(session, claim, "job_started", "The job runs.")
    move_cycle(session, claim.cycle_id, "running")
    session.execute(
        insert(Attempt).values(
            id=claim.attempt_id,
            cycle_id=claim.cycle_id,
            number=number,
            fence=claim.fence,
            worker_id=worker_id,
            celery_task_id=celery_task_id,
            opened_at=func.clock_timestamp(),
            lease_expires_at=func.clock_timestamp() + timedelta(seconds=lease_s),
        )
    )
    message = f"Attempt {number} at cycle {claim.cycle_index} began on {worker_id}."
    tell(session, claim, "attempt_opened", message, data={"worker_id": worker_id, "fence": claim.fence})
    return claim


def _core_files(session: Session, core_id: str | None) -> tuple[StoredFile, ...]:
    if core_id is None:
        return ()
    rows = session.execute(
        select(Artifact.name, Artifact.object_key, Artifact.size_bytes, Artifact.sha256)
        .join(Core, Core.cycle_id == Artifact.cycle_id)
        .where(Core.id == core_id, Artifact.name.like(text("'core/%'")))
        .order_by(Artifact.name)
    )
    return tuple(StoredFile(*row) for row in rows)
