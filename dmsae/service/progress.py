"""How far is a job, how long will it still take, and why does it wait?"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dmsae.service.queue_snapshots import Place, find_places
from dmsae.service.tables import FINAL_JOB_STATES, Artifact, Attempt, Cycle, Event, Job, Owner
from dmsae.service.waiting import Standing, look, say_why

MODEL_NAMES = ("id", "name", "path")
"""Which setting of a model's source names it; each source has one of them."""
TOLD_BY_TRAINERS = ("model_loaded", "hook_resolved")
"""Events that say what a trainer really uses."""


@dataclass(frozen=True)
class Progress:
    """Where a job stands; numbers of the cycle in hand come from its trainer's last line."""

    n_cycles: int
    n_cycles_done: int
    cycle_index: int | None
    """The cycle that runs or is queued."""
    attempt_number: int | None
    phase: str | None
    latest: dict[str, Any] | None
    """The trainer's last progress line."""
    time_left_s: float | None
    """Of the whole job, judged by its cycles so far; null while unknown."""
    queue_position: int | None
    """How many queued cycles of the same resource class come first, in the order of claims."""
    starts_in_s: float | None
    """When the queued cycle would begin if nothing else came; null while nothing can be told."""
    queue_seen_at: datetime | None
    """When position and start were worked out."""


@dataclass(frozen=True)
class JobView:
    """A job as it is shown."""

    job: Job
    owner: str
    progress: Progress
    state_reason: str | None
    stored_bytes: int
    """Of all artifacts of its finished cycles."""
    in_use: dict[str, Any] | None
    """What its trainers really loaded and where they cut it; null before the first has."""

    @property
    def model(self) -> str | None:
        """What its language model is called, as its source names it."""
        source = self.job.config.get("model", {})
        return next((source[name] for name in MODEL_NAMES if name in source), None)

    @property
    def is_decided_by_version(self) -> bool:
        """Whether the same version always looks the same: not while a cycle waits in the queue."""
        return self.progress.cycle_index is None or self.progress.attempt_number is not None


@dataclass(frozen=True)
class _Surroundings:
    now: datetime
    cycles: dict[str, list[Any]]
    attempts: dict[str, Any]
    places: dict[str, Place]
    owners: dict[str, str]
    stored_bytes: dict[str, int]
    in_use: dict[str, dict[str, Any]]
    standing: Standing


def view_jobs(session: Session, jobs: Sequence[Job]) -> list[JobView]:
    """Show jobs with their progress, in the order given."""
    if not jobs:
        return []
    around = _surroundings(session, [job.id for job in jobs])
    return [_view(job, around) for job in jobs]


def _surroundings(session: Session, job_ids: list[str]) -> _Surroundings:
    cycles: dict[str, list[Any]] = defaultdict(list)
    columns = (Cycle.id, Cycle.job_id, Cycle.index.label("cycle_index"), Cycle.state, Cycle.resource_class)
    times = (Cycle.not_before, Cycle.state_reason, Cycle.started_at, Cycle.finished_at)
    needs = (Cycle.owner_id, Cycle.memory_bytes, Cycle.cache_key)
    for row in session.execute(
        select(*columns, *times, *needs).where(Cycle.job_id.in_(job_ids)).order_by(Cycle.job_id, Cycle.index)
    ):
        cycles[row.job_id].append(row)
    attempts = session.execute(
        select(
            Attempt.cycle_id,
            Attempt.number,
            Attempt.phase,
            Attempt.progress,
            Attempt.progress_at,
            Attempt.opened_at,
        )
        .join(Cycle, Cycle.id == Attempt.cycle_id)
        .where(Cycle.job_id.in_(job_ids), Attempt.outcome.is_(None))
    )
    owners = session.execute(select(Job.id, Owner.name).join(Owner).where(Job.id.in_(job_ids)))
    size_bytes = func.sum(Artifact.size_bytes).label("size_bytes")
    stored = session.execute(
        select(Artifact.job_id, size_bytes).where(Artifact.job_id.in_(job_ids)).group_by(Artifact.job_id)
    )
    queued = [row.id for rows in cycles.values() for row in rows if row.state == "queued"]
    return _Surroundings(
        now=session.scalars(select(func.now())).one(),
        cycles=cycles,
        attempts={row.cycle_id: row for row in attempts},
        places=find_places(session, queued),
        owners={row.id: row.name for row in owners},
        stored_bytes={row.job_id: int(row.size_bytes) for row in stored},
        in_use=_in_use(session, job_ids),
        standing=look(session),
    )


def _in_use(session: Session, job_ids: list[str]) -> dict[str, dict[str, Any]]:
    """Put together what trainers told; the last one counts."""
    told = session.execute(
        select(Event.job_id, Event.data)
        .where(Event.job_id.in_(job_ids), Event.kind.in_(TOLD_BY_TRAINERS))
        .order_by(Event.job_id, Event.seq)
    )
    in_use: dict[str, dict[str, Any]] = defaultdict(dict)
    for row in told:
        in_use[row.job_id].update(row.data)
    return in_use


def _view(job: Job, around: _Surroundings) -> JobView:
    cycles = around.cycles.get(job.id, [])
    current = next((cycle for cycle in cycles if cycle.state in ("running", "queued")), None)
    attempt = around.attempts.get(current.id) if current is not None else None
    place = around.places.get(current.id) if current is not None else None
    progress = Progress(
        n_cycles=len(cycles),
        n_cycles_done=sum(cycle.state == "succeeded" for cycle in cycles),
        cycle_index=current.cycle_index if current is not None else None,
        attempt_number=attempt.number if attempt is not None else None,
        phase=attempt.phase if attempt is not None else None,
        latest=attempt.progress if attempt is not None else None,
        time_left_s=_time_left_s(cycles, attempt, around.now),
        queue_position=None if place is None else place.position,
        starts_in_s=None if place is None else place.starts_in_s,
        queue_seen_at=None if place is None else place.taken_at,
    )
    reason = _reason(job, current, place, around)
    return JobView(
        job,
        around.owners[job.id],
        progress,
        reason,
        stored_bytes=around.stored_bytes.get(job.id, 0),
        in_use=around.in_use.get(job.id),
    )


def _time_left_s(cycles: list[Any], attempt: Any, now: datetime) -> float | None:
    """Give what the trainer says of its cycle, plus for each later cycle the mean of those before."""
    cycle_left_s = (attempt.progress or {}).get("time_left_s") if attempt is not None else None
    if attempt is None or not isinstance(cycle_left_s, int | float):
        return None
    cycle_left_s = max(0.0, cycle_left_s - (now - attempt.progress_at).total_seconds())
    lengths = [
        (cycle.finished_at - cycle.started_at).total_seconds()
        for cycle in cycles
        if cycle.state == "succeeded"
    ]
    so_far_s = (now - attempt.opened_at).total_seconds()
    mean_s = sum(lengths) / len(lengths) if lengths else so_far_s + cycle_left_s
    return float(cycle_left_s + mean_s * sum(cycle.state == "waiting" for cycle in cycles))


def _reason(job: Job, current: Any, place: Place | None, around: _Surroundings) -> str | None:
    if job.state in FINAL_JOB_STATES or current is None:
        return job.state_reason
    if job.state == "cancelling":
        return job.state_reason or "It is cancelled once its trainer has stopped."
    if current.state == "running":
        return job.state_reason
    return say_why(current, around.standing, place, is_held=job.held)
