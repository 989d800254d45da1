"""How far is a job, how long will it still take, and why does it wait?"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Text, bindparam, case, cast, func, select
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by
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


_STORED = select(cast(func.sum(Artifact.size_bytes), BigInteger)).where(Artifact.job_id == Cycle.job_id)
_TOLD = select(func.jsonb_agg(aggregate_order_by(Event.data, Event.seq), type_=JSONB)).where(
    Event.job_id == Cycle.job_id, Event.kind.in_(TOLD_BY_TRAINERS)
)
_IS_FIRST = Cycle.index == 0
AROUND = (
    select(
        *(Cycle.id, Cycle.job_id, Cycle.index.label("cycle_index"), Cycle.state, Cycle.resource_class),
        *(Cycle.not_before, Cycle.state_reason, Cycle.started_at, Cycle.finished_at),
        *(Cycle.owner_id, Cycle.memory_bytes, Cycle.cache_key),
        *(Attempt.number, Attempt.phase, Attempt.progress, Attempt.progress_at, Attempt.opened_at),
        Owner.name.label("owner"),
        case((_IS_FIRST, _STORED.scalar_subquery())).label("stored_bytes"),
        case((_IS_FIRST, _TOLD.scalar_subquery())).label("told"),
        func.now().label("now"),
    )
    .join(Owner, Owner.id == Cycle.owner_id)
    .outerjoin(Attempt, (Attempt.cycle_id == Cycle.id) & Attempt.outcome.is_(None))
    .where(Cycle.job_id == func.any(bindparam("job_ids", type_=ARRAY(Text))))
    .order_by(Cycle.job_id, Cycle.index)
)
"""All cycles of some jobs, each with its open attempt; what belongs to a job stands in its first row. In one
statement, since a job is asked for more often than anything else.
"""


def view_jobs(session: Session, jobs: Sequence[Job]) -> list[JobView]:
    """Show jobs with their progress, in the order given."""
    if not jobs:
        return []
    cycles: dict[str, list[Any]] = defaultdict(list)
    for row in session.execute(AROUND, {"job_ids": [job.id for job in jobs]}):
        cycles[row.job_id].append(row)
    queued = [row.id for rows in cycles.values() for row in rows if row.state == "queued"]
    line = _Line(find_places(session, queued), look(session)) if queued else None
    return [_view(job, cycles[job.id], line) for job in jobs]


def view_queued(job: Job, cycle: Any, *, n_cycles: int, owner: str, standing: Standing) -> JobView:
    """Show a job that this very transaction stores, with its first cycle, as `view_jobs` would find it."""
    progress = Progress(
        n_cycles=n_cycles,
        n_cycles_done=0,
        cycle_index=0,
        attempt_number=None,
        phase=None,
        latest=None,
        time_left_s=None,
        queue_position=None,
        starts_in_s=None,
        queue_seen_at=None,
    )
    reason = say_why(cycle, standing, None, is_held=False)
    return JobView(job, owner, progress, reason, stored_bytes=0, in_use=None)


@dataclass(frozen=True)
class _Line:
    """What is known of the queue."""

    places: Mapping[str, Place]
    standing: Standing


def _view(job: Job, cycles: Sequence[Any], line: _Line | None) -> JobView:
    current = next((cycle for cycle in cycles if cycle.state in ("running", "queued")), None)
    attempt = current if current is not None and current.number is not None else None
    place = line.places.get(current.id) if line is not None and current is not None else None
    progress = Progress(
        n_cycles=len(cycles),
        n_cycles_done=sum(cycle.state == "succeeded" for cycle in cycles),
        cycle_index=current.cycle_index if current is not None else None,
        attempt_number=attempt.number if attempt is not None else None,
        phase=attempt.phase if attempt is not None else None,
        latest=attempt.progress if attempt is not None else None,
        time_left_s=_time_left_s(cycles, attempt),
        queue_position=None if place is None else place.position,
        starts_in_s=None if place is None else place.starts_in_s,
        queue_seen_at=None if place is None else place.taken_at,
    )
    return JobView(
        job,
        cycles[0].owner,
        progress,
        _reason(job, current, place, line),
        stored_bytes=cycles[0].stored_bytes or 0,
        in_use=_in_use(cycles[0].told or ()),
    )


def _in_use(told: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Put together what trainers told; the last one counts."""
    found: dict[str, Any] = {}
    for data in told:
        found |= data
    return found if told else None


def _time_left_s(cycles: Sequence[Any], attempt: Any) -> float | None:
    """Give what the trainer says of its cycle, plus for each later cycle the mean of those before."""
    cycle_left_s = (attempt.progress or {}).get("time_left_s") if attempt is not None else None
    if attempt is None or not isinstance(cycle_left_s, int | float):
        return None
    cycle_left_s = max(0.0, cycle_left_s - (attempt.now - attempt.progress_at).total_seconds())
    lengths = [
        (cycle.finished_at - cycle.started_at).total_seconds()
        for cycle in cycles
        if cycle.state == "succeeded"
    ]
    so_far_s = (attempt.now - attempt.opened_at).total_seconds()
    mean_s = sum(lengths) / len(lengths) if lengths else so_far_s + cycle_left_s
    return float(cycle_left_s + mean_s * sum(cycle.state == "waiting" for cycle in cycles))


def _reason(job: Job, current: Any, place: Place | None, line: _Line | None) -> str | None:
    if job.state in FINAL_JOB_STATES or current is None:
        return job.state_reason
    if job.state == "cancelling":
        return job.state_reason or "It is cancelled once its trainer has stopped."
    if current.state == "running" or line is None:
        return job.state_reason
    return say_why(current, line.standing, place, is_held=job.held)
