"""How far is a job, how long will it still take, and why does it wait?"""

from collections import namedtuple
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from typing import cast as typed

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Double,
    Select,
    Text,
    bindparam,
    cast,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by
from sqlalchemy.orm import Session

from dmsae.service.prepared import Prepared
from dmsae.service.queue_snapshots import PLACE, Place, find_places
from dmsae.service.tables import FINAL_JOB_STATES, Artifact, Attempt, Cycle, Event, Job, Owner
from dmsae.service.waiting import STANDING, Standing, look, say_why, standing_of

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


_COUNTS = (
    select(
        func.count().label("n_cycles"),
        func.count().filter(Cycle.state == "succeeded").label("n_done"),
        func.count().filter(Cycle.state == "waiting").label("n_waiting"),
        cast(
            func.avg(func.extract("epoch", Cycle.finished_at - Cycle.started_at)).filter(
                Cycle.state == "succeeded"
            ),
            Double,
        ).label("mean_s"),
    )
    .where(Cycle.job_id == Job.id)
    .lateral("counts")
)
_CURRENT = (
    select(
        *(Cycle.id, Cycle.index.label("cycle_index"), Cycle.state, Cycle.state_reason, Cycle.not_before),
        *(Cycle.resource_class, Cycle.owner_id, Cycle.memory_bytes, Cycle.cache_key),
    )
    .where(Cycle.job_id == Job.id, Cycle.state.in_(("running", "queued")))
    .order_by(Cycle.index)
    .limit(1)
    .lateral("current")
)
_STORED = select(cast(func.sum(Artifact.size_bytes), BigInteger)).where(Artifact.job_id == Job.id)
_TOLD = select(func.jsonb_agg(aggregate_order_by(Event.data, Event.seq), type_=JSONB)).where(
    Event.job_id == Job.id, Event.kind.in_(TOLD_BY_TRAINERS)
)


_JOB = tuple(Job.__table__.c)
_OF_JOB = (
    *(*_COUNTS.c, *_CURRENT.c),
    *(Attempt.number, Attempt.phase, Attempt.progress, Attempt.progress_at, Attempt.opened_at),
    *(Owner.name.label("owner"), func.clock_timestamp().label("now")),
    *(_STORED.scalar_subquery().label("stored_bytes"), _TOLD.scalar_subquery().label("told")),
)
"""All that is shown of a job beside its own columns, but for where and why it waits."""


def _seen(*what: Any) -> Select[Any]:
    return (
        select(*what, *_OF_JOB)
        .select_from(Job)
        .join(Owner, Owner.id == Job.owner_id)
        .join(_COUNTS, true())
        .outerjoin(_CURRENT, true())
        .outerjoin(Attempt, (Attempt.cycle_id == _CURRENT.c.id) & Attempt.outcome.is_(None))
    )


_LINE = (*PLACE.c, literal_column(f"CASE WHEN current.state = 'queued' THEN {STANDING} END"))
_JobRow = namedtuple("_JobRow", [column.key for column in _JOB])  # type: ignore[misc]
_Row = namedtuple("_Row", [column.key for column in _OF_JOB])  # type: ignore[misc]


class _Seen(NamedTuple):
    """A job, and what is shown of it."""

    job: Job
    """Its row, to be read."""
    row: Any
    place: Place | None
    standing: Standing | None
    """Null unless it waits."""

    @classmethod
    def of(cls, values: Iterable[Any]) -> "_Seen":
        """Take apart what `ONE` gave."""
        columns = tuple(values)
        job, rest = columns[: len(_JOB)], columns[len(_JOB) :]
        *place, standing = rest[: len(_LINE)]
        row: Any = _Row._make(rest[len(_LINE) :])
        return cls(
            typed("Job", _JobRow._make(job)),
            row,
            None if place[0] is None else Place(*place),
            None if standing is None else standing_of(row.now, standing),
        )


ONE = Prepared(
    _seen(*_JOB, *_LINE).outerjoin(PLACE, true()).where(Job.id == bindparam("job_id", "", Text)), _Seen.of
)
"""A job with all that is shown of it: one statement, since nothing is asked for more often."""
MANY = _seen(Job.id.label("job_id")).where(Job.id == func.any(bindparam("job_ids", type_=ARRAY(Text))))


def find_view(session: Session, job_id: str) -> JobView | None:
    """Show a job with its progress, a deleted one too; None if there is none."""
    found = ONE.find(session, job_id=job_id)
    return None if found is None else _view(*found)


def view_jobs(session: Session, jobs: Sequence[Job]) -> list[JobView]:
    """Show jobs with their progress, in the order given."""
    if not jobs:
        return []
    rows = {row.job_id: row for row in session.execute(MANY, {"job_ids": [job.id for job in jobs]})}
    queued = [row.id for row in rows.values() if row.state == "queued"]
    places = find_places(session, queued)
    standing = look(session) if queued else None
    return [_view(job, rows[job.id], places.get(rows[job.id].id), standing) for job in jobs]


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


def _view(job: Job, row: Any, place: Place | None, standing: Standing | None) -> JobView:
    progress = Progress(
        n_cycles=row.n_cycles,
        n_cycles_done=row.n_done,
        cycle_index=row.cycle_index,
        attempt_number=row.number,
        phase=row.phase,
        latest=row.progress,
        time_left_s=_time_left_s(row),
        queue_position=None if place is None else place.position,
        starts_in_s=None if place is None else place.starts_in_s,
        queue_seen_at=None if place is None else place.taken_at,
    )
    reason = _reason(job, row, place, standing)
    return JobView(job, row.owner, progress, reason, row.stored_bytes or 0, _in_use(row.told or ()))


def _in_use(told: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Put together what trainers told; the last one counts."""
    found: dict[str, Any] = {}
    for data in told:
        found |= data
    return found if told else None


def _time_left_s(row: Any) -> float | None:
    """Give what the trainer says of its cycle, plus for each later cycle the mean of those before."""
    said_s = (row.progress or {}).get("time_left_s")
    if not isinstance(said_s, int | float):
        return None
    cycle_left_s = max(0.0, said_s - (row.now - row.progress_at).total_seconds())
    so_far_s = (row.now - row.opened_at).total_seconds()
    mean_s = so_far_s + cycle_left_s if row.mean_s is None else row.mean_s
    return float(cycle_left_s + mean_s * row.n_waiting)


def _reason(job: Job, row: Any, place: Place | None, standing: Standing | None) -> str | None:
    if job.state in FINAL_JOB_STATES or row.id is None:
        return job.state_reason
    if job.state == "cancelling":
        return job.state_reason or "It is cancelled once its trainer has stopped."
    if row.state == "running" or standing is None:
        return job.state_reason
    return say_why(row, standing, place, is_held=job.held)
