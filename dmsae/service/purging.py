"""What goes, bit by bit, after a job was deleted?

First its objects, events, logs and metric points; then, once no device time of it counts any more and unless
another job's lineage refers to its latents, its cycles, cores and latents too. A tombstone is left. Every
function is one bounded transaction that may be repeated; an object is deleted between two of them.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, func, or_, select, tuple_, update
from sqlalchemy.orm import Session, aliased

from dmsae.service.claims import USAGE_WINDOW
from dmsae.service.core_tables import CoreDrop, LatentMatch
from dmsae.service.source_tables import CycleSource
from dmsae.service.states import Held, lock_job
from dmsae.service.tables import (
    Artifact,
    Attempt,
    Checkpoint,
    Core,
    CoreLatent,
    Cycle,
    CycleOrigin,
    Event,
    Job,
    Latent,
    MetricPoint,
)

OWN_CYCLE = func.coalesce(Core.cycle_id, Core.given_cycle_id)
"""The cycle that selected a core, or that it was given to."""


def marked_artifacts(session: Session, *, limit: int) -> list[str]:
    """List keys of artifacts whose objects are to go, the oldest marks first."""
    query = select(Artifact.object_key).where(Artifact.deleted_at.is_not(None))
    return list(session.scalars(query.order_by(Artifact.deleted_at, Artifact.object_key).limit(limit)))


def forget_artifacts(session: Session, keys: Sequence[str]) -> None:
    """Remove the rows of artifacts whose objects are gone."""
    session.execute(delete(Artifact).where(Artifact.object_key.in_(keys), Artifact.deleted_at.is_not(None)))


def abandoned_attempts(session: Session, *, closed_before_s: float, limit: int) -> list[Held]:
    """List attempts without success, closed so long ago, of which nothing is needed: no checkpoint either."""
    columns = (Cycle.job_id, Cycle.id, Cycle.index, Attempt.id, Attempt.number, Attempt.fence)
    rows = session.execute(
        select(*columns, Cycle.resource_class)
        .join(Cycle, Cycle.id == Attempt.cycle_id)
        .where(
            Attempt.outcome != "succeeded",
            Attempt.cleared_at.is_(None),
            ~select(Checkpoint.step)
            .where(Checkpoint.attempt_id == Attempt.id, Checkpoint.superseded_at.is_(None))
            .exists(),
            Attempt.closed_at < func.clock_timestamp() - timedelta(seconds=closed_before_s),
        )
        .order_by(Attempt.closed_at, Attempt.id)
        .limit(limit)
    )
    return [Held(*row) for row in rows]


def note_cleared(session: Session, attempt_id: str) -> None:
    """Note that nothing of what an attempt stored without success is left."""
    session.execute(
        update(Attempt)
        .where(Attempt.id == attempt_id, Attempt.outcome != "succeeded")
        .values(cleared_at=func.now())
        .execution_options(synchronize_session=False)
    )


def jobs_to_clear(session: Session, *, limit: int) -> list[str]:
    """List deleted jobs that still have objects, events, logs or metric points, the longest deleted first."""
    query = select(Job.id).where(Job.deleted_at.is_not(None), Job.purged_at.is_(None))
    return list(session.scalars(query.where(Job.cleared_at.is_(None)).order_by(Job.deleted_at).limit(limit)))


def clear_job(session: Session, job_id: str, *, limit: int) -> bool:
    """Remove a part of a deleted job's events, logs and metric points; true once all are gone, objects too.

    Raises:
        NotFound: there is no such job.
    """
    lock_job(session, job_id)
    cycles = select(Cycle.id).where(Cycle.job_id == job_id)
    event = (Event.job_id, Event.seq)
    events = select(*event).where(Event.job_id == job_id).order_by(Event.seq).limit(limit)
    n_removed = _removed(session, delete(Event).where(tuple_(*event).in_(events)).returning(Event.seq))
    point = (MetricPoint.cycle_id, MetricPoint.step)
    points = select(*point).where(MetricPoint.cycle_id.in_(cycles)).order_by(*point).limit(limit)
    gone = delete(MetricPoint).where(tuple_(*point).in_(points)).returning(MetricPoint.step)
    n_removed += _removed(session, gone)
    session.execute(
        update(Attempt)
        .where(Attempt.cycle_id.in_(cycles))
        .values(log_tail="", progress=None, error=None)
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(Checkpoint)
        .where(Checkpoint.cycle_id.in_(cycles), Checkpoint.superseded_at.is_(None))
        .values(superseded_at=func.now())
        .execution_options(synchronize_session=False)
    )
    stored = (
        select(Artifact.object_key).where(Artifact.job_id == job_id),
        select(Checkpoint.object_prefix).where(Checkpoint.cycle_id.in_(cycles)),
    )
    if n_removed or any(session.scalar(query.limit(1)) is not None for query in stored):
        return False
    return _note(session, job_id, Job.cleared_at.is_(None), cleared_at=func.now(), error=None)


def jobs_to_purge(session: Session, *, limit: int) -> list[str]:
    """List cleared jobs of which no device time counts any more and to which no other lineage refers."""
    still_counts = (
        select(Attempt.id)
        .join(Cycle, Cycle.id == Attempt.cycle_id)
        .where(
            Cycle.job_id == Job.id,
            or_(
                Attempt.closed_at > func.now() - USAGE_WINDOW,
                (Attempt.outcome != "succeeded") & Attempt.cleared_at.is_(None),
            ),
        )
        .exists()
    )
    query = select(Job.id).where(
        Job.deleted_at.is_not(None),
        Job.purged_at.is_(None),
        Job.cleared_at.is_not(None),
        ~still_counts,
        ~_is_referred_to(),
    )
    return list(session.scalars(query.order_by(Job.deleted_at).limit(limit)))


def purge_job(session: Session, job_id: str, *, limit: int) -> bool:
    """Remove a part of a cleared job's places, latents and cycles; true once all are gone, or must stay.

    Raises:
        NotFound: there is no such job.
    """
    lock_job(session, job_id)
    if session.scalar(select(_is_referred_to()).where(Job.id == job_id)):
        return True
    cores = select(Core.id).join(Cycle, Cycle.id == OWN_CYCLE).where(Cycle.job_id == job_id)
    place = (CoreLatent.core_id, CoreLatent.core_index)
    latest_first = (
        select(*place)
        .join(Core, Core.id == CoreLatent.core_id)
        .join(Cycle, Cycle.id == OWN_CYCLE)
        .where(Cycle.job_id == job_id)
        .order_by(Cycle.index.desc(), Core.given_cycle_id.is_not(None), CoreLatent.core_index)
        .limit(limit)
    )
    places = delete(CoreLatent).where(tuple_(*place).in_(latest_first)).returning(CoreLatent.core_index)
    latents = select(Latent.id).where(Latent.origin_job_id == job_id).order_by(Latent.id).limit(limit)
    if _removed(session, places) or _remove_drops(session, job_id, limit) + _remove_matches(
        session, job_id, limit
    ):
        return False
    if _removed(session, delete(Latent).where(Latent.id.in_(latents)).returning(Latent.id)):
        return False
    _remove_cycles(session, job_id, core_ids=list(session.scalars(cores)))
    return _note(session, job_id, Job.purged_at.is_(None), purged_at=func.now(), config={}, changes=None)


def _remove_drops(session: Session, job_id: str, limit: int) -> int:
    own = select(Cycle.id).where(Cycle.job_id == job_id)
    drop = (CoreDrop.cycle_id, CoreDrop.core_index)
    found = select(*drop).where(CoreDrop.cycle_id.in_(own)).order_by(*drop).limit(limit)
    return _removed(session, delete(CoreDrop).where(tuple_(*drop).in_(found)).returning(CoreDrop.core_index))


def _remove_matches(session: Session, job_id: str, limit: int) -> int:
    """Remove what a match found, and what others found of latents of this job."""
    own = select(Cycle.id).where(Cycle.job_id == job_id)
    latents = select(Latent.id).where(Latent.origin_job_id == job_id)
    sides = (LatentMatch.cycle_id.in_(own), LatentMatch.a_latent_id.in_(latents))
    key = (LatentMatch.cycle_id, LatentMatch.a, LatentMatch.b, LatentMatch.a_latent_id)
    found = select(*key).where(or_(*sides, LatentMatch.b_latent_id.in_(latents))).limit(limit)
    return _removed(session, delete(LatentMatch).where(tuple_(*key).in_(found)).returning(LatentMatch.a))


def _remove_cycles(session: Session, job_id: str, *, core_ids: list[str]) -> None:
    cycles = select(Cycle.id).where(Cycle.job_id == job_id)
    for table in (CycleOrigin, Checkpoint, Attempt):
        session.execute(delete(table).where(table.cycle_id.in_(cycles)))
    either = or_(CycleSource.cycle_id.in_(cycles), CycleSource.source_cycle_id.in_(cycles))
    session.execute(delete(CycleSource).where(either))
    session.execute(update(Core).where(Core.id.in_(core_ids)).values(cycle_id=None, given_cycle_id=None))
    session.execute(delete(Cycle).where(Cycle.job_id == job_id))
    session.execute(delete(Core).where(Core.id.in_(core_ids)))


def _is_referred_to() -> ColumnElement[bool]:
    """Give the condition on `jobs` that another job, or a published core, refers to its cores or latents."""
    own, other, core = aliased(Cycle), aliased(Cycle), aliased(Core)
    own_cycle = func.coalesce(core.cycle_id, core.given_cycle_id)
    cores = select(core.id).join(own, own.id == own_cycle).where(own.job_id == Job.id).correlate(Job)
    is_foreign = or_(other.job_id.is_(None), other.job_id != Job.id)
    places = (
        select(CoreLatent.core_id)
        .join(Core, Core.id == CoreLatent.core_id)
        .outerjoin(other, other.id == OWN_CYCLE)
        .where(is_foreign)
    )
    holds_latent = places.join(Latent, Latent.id == CoreLatent.latent_id).where(
        Latent.origin_job_id == Job.id
    )
    has_parent = places.where(CoreLatent.parent_core_id.in_(cores))
    starts_from = select(other.id).where(other.input_core_id.in_(cores), other.job_id != Job.id)
    counts_origin = (
        select(CycleOrigin.cycle_id)
        .join(other, other.id == CycleOrigin.cycle_id)
        .where(CycleOrigin.origin_job_id == Job.id, other.job_id != Job.id)
    )
    is_published = select(Core.id).where(Core.id.in_(cores), Core.name.is_not(None))
    queries = (counts_origin, starts_from, is_published, has_parent, holds_latent)
    return or_(*(query.correlate(Job).exists() for query in queries))


def _removed(session: Session, statement: Any) -> int:
    return len(session.execute(statement.execution_options(synchronize_session=False)).all())


def _note(session: Session, job_id: str, condition: ColumnElement[bool], **values: Any) -> bool:
    noted = session.execute(
        update(Job)
        .where(Job.id == job_id, Job.deleted_at.is_not(None), condition)
        .values(**values)
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    return noted.one_or_none() is not None
