"""Which cycle does this worker run now?

One function in Postgres (`claim_cycle`, in `migrations/`) decides for all workers, in four lanes of advisory
locks: so each decision sees all claims before it but three at most, which is what fair sharing needs. While
any owner has a limit on running cycles, claims are made one after the other. A cycle that cannot be had at
once is passed over.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

from sqlalchemy import ColumnElement, Row, and_, func, or_, select, text
from sqlalchemy.orm import Session

from dmsae.config import SPEC_VERSION
from dmsae.service.checkpoints import ResumePoint, newest_checkpoint
from dmsae.service.cycle_sources import make_spec, source_files
from dmsae.service.ids import new_id
from dmsae.service.settings import Settings
from dmsae.service.states import Held
from dmsae.service.tables import Artifact, Attempt, Core, Cycle, Job
from dmsae.service.workers import ALIVE

USAGE_WINDOW = timedelta(hours=24)
"""How far back device time counts when owners take turns; to the hour."""

STARVED_PART = 0.9
"""Part of the starvation bound after which a cycle goes first, so that it begins before the bound is over."""

LEAST_CHARGE_S = 1.0
"""What an attempt costs its owner at least, so that owners of very short cycles take turns too."""

CLAIM = text(
    "SELECT * FROM claim_cycle(:worker_id, :resource_class, :spec_version, :attempt_id, :celery_task_id,"
    " :lease_s, :window_s, :least_charge_s, :alive_s, :affinity_wait_s, :starvation_s, :high_quota_s)"
)


@dataclass(frozen=True)
class QueueRules:
    """What the order of claims goes by, beside the owners' own weights and limits."""

    affinity_wait_s: float = 120.0
    """How long a cycle waits for a worker that holds its activations before any other may take it."""
    starvation_s: float = 86_400.0
    """No cycle waits longer for its turn, unless its owner has had more than a fair share."""
    high_quota_s: float = 14_400.0
    """Device-seconds of the window that an owner may take at high priority; beyond it, high is normal."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Take them from the settings."""
        return cls(settings.affinity_wait_s, settings.starvation_s, settings.high_quota_s)

    @property
    def starved_after_s(self) -> float:
        """Give the wait after which a cycle goes before all priorities."""
        return STARVED_PART * self.starvation_s

    def arguments(self) -> dict[str, float]:
        """Name them as `claim_cycle` is given them."""
        return {
            "affinity_wait_s": self.affinity_wait_s,
            "starvation_s": self.starved_after_s,
            "high_quota_s": self.high_quota_s,
        }


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
    """A `CycleSpec`, or a probe's `MatchSpec`."""
    input_core_id: str | None
    input_files: tuple[StoredFile, ...]
    """The files of the core that the cycle starts from; none in cycle 0."""
    time_limit_s: int | None
    cache_key: str | None = None
    """Names the activations that it reads."""
    checkpoint: ResumePoint | None = None
    """Where an earlier attempt left off; none where the cycle begins."""
    n_parts: int = 1
    """In how many parts batches are computed: more, once an attempt ran out of memory."""
    source_files: tuple[StoredFile, ...] = ()
    """The files of finished cycles that it starts from besides, named `<job>.<cycle index>/<path in OUT>`."""


def claim_cycle(
    session: Session,
    *,
    worker_id: str,
    resource_class: str,
    lease_s: float,
    celery_task_id: str | None,
    rules: QueueRules = QueueRules(),
) -> Claim | None:
    """Open an attempt at the best cycle that this worker may run; None if there is none.

    A cycle close to the starvation bound goes first; then priority decides; then owners take turns by the
    device time that they used in the window, running work counted, over their weight; then age. Among the
    chosen owner's cycles of that priority come first those whose activations the worker holds. Passed over
    are held jobs, cycles in backoff, of a newer spec or too large for the device, those that another live
    worker holds the activations of (for a while), those of owners at their limit, and locked ones. While the
    queue is paused there is none.

    The claim itself is one statement, committed without waiting for the disk: run it by `Database.run_alone`,
    and let another commit follow before anything is built on it.

    Mutates: the cycle runs, its job too, an attempt is open, events tell it.
    """
    given: dict[str, Any] = {
        "worker_id": worker_id,
        "resource_class": resource_class,
        "spec_version": SPEC_VERSION,
        "attempt_id": new_id("attempt"),
        "celery_task_id": celery_task_id,
        "lease_s": lease_s,
        "window_s": USAGE_WINDOW.total_seconds(),
        "least_charge_s": LEAST_CHARGE_S,
        "alive_s": ALIVE.total_seconds(),
        **rules.arguments(),
    }
    row = session.execute(CLAIM, given).one_or_none()
    return None if row is None else _claim_of(session, row, attempt_id=given["attempt_id"])


def is_claimable(resource_class: str | None = None) -> ColumnElement[bool]:
    """Give the condition on `cycles` joined with `jobs` under which a cycle may be claimed now."""
    conditions = [
        Cycle.state == "queued",
        Cycle.spec_version <= SPEC_VERSION,
        or_(Cycle.not_before.is_(None), Cycle.not_before <= func.clock_timestamp()),
        Job.state.in_(("queued", "running")),
        Job.held.is_(False),
        Cycle.held.is_(False),
    ]
    if resource_class is not None:
        conditions.append(Cycle.resource_class == resource_class)
    return and_(*conditions)


def _claim_of(session: Session, row: Row[Any], *, attempt_id: str) -> Claim:
    return Claim(
        job_id=row.job_id,
        cycle_id=row.cycle_id,
        cycle_index=row.cycle_index,
        attempt_id=attempt_id,
        attempt_number=row.attempt_number,
        fence=row.fence,
        resource_class=row.resource_class,
        spec=make_spec(row.job_id, row.cycle_index, spec_version=row.spec_version, config=row.config),
        input_core_id=row.input_core_id,
        input_files=_core_files(session, row.input_core_id),
        time_limit_s=row.config.get("time_limit_s"),
        cache_key=row.cache_key,
        checkpoint=newest_checkpoint(session, row.cycle_id) if row.attempt_number > 1 else None,
        n_parts=2 if row.attempt_number > 1 and _ran_out_of_memory(session, row.cycle_id) else 1,
        source_files=tuple(StoredFile(*file) for file in source_files(session, row.cycle_id)),
    )


def _ran_out_of_memory(session: Session, cycle_id: str) -> bool:
    query = select(Attempt.id).where(
        Attempt.cycle_id == cycle_id, Attempt.error["code"].astext == "out_of_memory"
    )
    return session.scalar(query.limit(1)) is not None


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
