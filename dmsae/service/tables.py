"""The tables, and the rules that the database itself guards.

States are text with a CHECK, times timestamptz, ids made in Python; use cases move rows between states.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from dmsae.service.core_tables import CORE_KINDS, Core, CoreLatent, CycleOrigin, Latent
from dmsae.service.table_base import FENCES, Table, one_of

__all__ = [
    "CLAIM_INDEXES",
    "CORE_KINDS",
    "CYCLE_STATES",
    "FENCES",
    "FINAL_JOB_STATES",
    "HAS_TAGS",
    "IS_CLAIMABLE",
    "IS_UNCLEARED",
    "IS_UNPURGED",
    "JOB_KINDS",
    "JOB_STATES",
    "OUTCOMES",
    "PHASES",
    "PRIORITIES",
    "ROLES",
    "ApiKey",
    "Artifact",
    "Attempt",
    "Checkpoint",
    "Core",
    "CoreLatent",
    "Cycle",
    "CycleOrigin",
    "Event",
    "Job",
    "Latent",
    "MetricPoint",
    "Owner",
    "Table",
    "Worker",
]

JOB_KINDS = ("distillation", "training", "probe")
JOB_STATES = ("queued", "running", "cancelling", "succeeded", "failed", "cancelled")
FINAL_JOB_STATES = ("succeeded", "failed", "cancelled")
CYCLE_STATES = ("waiting", "queued", "running", "succeeded", "failed", "cancelled", "skipped")
PHASES = ("starting", "loading", "harvesting", "training", "attributing", "evaluating", "uploading")
OUTCOMES = ("succeeded", "failed", "crashed", "handed_back", "cancelled", "superseded")
PRIORITIES = ("low", "normal", "high")
ROLES = ("reader", "submitter", "admin")
"""Of keys, each more than the one before."""
IS_CLAIMABLE = text("state = 'queued' AND NOT held")
IS_HIGH = text("state = 'queued' AND NOT held AND priority_rank = 0")
CLAIM_INDEXES = {
    "ix_cycles_claimable": ("resource_class", "owner_id", "priority_rank", "queued_at", "id"),
    "ix_cycles_oldest": ("resource_class", "owner_id", "queued_at", "id"),
    "ix_cycles_cached": ("cache_key", "owner_id", "priority_rank", "queued_at", "id"),
    "ix_cycles_waiting": ("resource_class", "queued_at"),
}
"""What `claim_cycle` walks along, to find the best cycle of an owner without looking at the others."""
IS_UNPURGED = text("deleted_at IS NOT NULL AND purged_at IS NULL")
IS_REPEATABLE = text("state = 'succeeded' AND deleted_at IS NULL")
IS_CONTROL = text(
    "kind = 'training' AND state = 'succeeded' AND deleted_at IS NULL AND config #>> '{core,kind}' = 'none'"
)
CONTROL_KEYS = ("((config #>> '{core,n_matched}')::integer)", "((config #>> '{sae,k}')::integer)")
"""How many latents of a core a width-matched control stands for, and its k: so comparisons look for it."""
HAS_TAGS = text("tags <> '{}'")
IS_UNCLEARED = text("outcome <> 'succeeded' AND cleared_at IS NULL")


class Owner(Table):
    """Who submits: every job has one."""

    __tablename__ = "owners"
    __table_args__ = (
        CheckConstraint("retention_days BETWEEN 0 AND 36500", "retention_days_bounded"),
        CheckConstraint("weight > 0 AND weight <= 1000000", "weight_positive"),
        CheckConstraint("max_running >= 0 AND max_queued >= 0 AND high_quota_s >= 0", "limits_not_negative"),
        Index("ix_owners_limited", "id", postgresql_where=text("max_running IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    retention_days: Mapped[int | None] = mapped_column(Integer)
    """Days after its end until a job is deleted; 0: never, null: as the service's settings say."""
    weight: Mapped[float] = mapped_column(server_default=text("1"))
    """Share of the devices, beside the weights of the others who wait."""
    max_running: Mapped[int | None] = mapped_column(Integer)
    """Most cycles at once; null: any number."""
    max_queued: Mapped[int | None] = mapped_column(Integer)
    """Most jobs that wait for their first claim; null: any number."""
    high_quota_s: Mapped[float | None]
    """Device-seconds of the window within which `high` goes first; null: as the service's settings say."""


class ApiKey(Table):
    """A bearer key, of which only the hash is kept."""

    __tablename__ = "api_keys"
    __table_args__ = (one_of("role", ROLES),)

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"), index=True)
    key_hash: Mapped[str] = mapped_column(unique=True)
    prefix: Mapped[str] = mapped_column(server_default="")
    """How it begins, to tell it from others; empty for keys older than this column."""
    role: Mapped[str] = mapped_column(server_default="submitter")
    name: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """Within a minute."""


class Job(Table):
    """A distillation, training or probe."""

    __tablename__ = "jobs"
    __table_args__ = (
        one_of("kind", JOB_KINDS),
        one_of("state", JOB_STATES),
        one_of("priority", PRIORITIES),
        CheckConstraint(
            "(finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled'))", "finished"
        ),
        CheckConstraint("deleted_at IS NULL OR finished_at IS NOT NULL", "deleted_after_its_end"),
        Index("ix_jobs_owner_id_created_at", "owner_id", "created_at"),
        Index("ix_jobs_created_at_id", "created_at", "id"),
        Index("ix_jobs_group_id", "group_id", postgresql_where=text("group_id IS NOT NULL")),
        Index("ix_jobs_tags", "tags", postgresql_using="gin", postgresql_where=HAS_TAGS),
        Index("ix_jobs_unpurged", "deleted_at", postgresql_where=IS_UNPURGED),
        Index("ix_jobs_repeatable", "config_digest", "finished_at", "id", postgresql_where=IS_REPEATABLE),
        Index("ix_jobs_controls", *map(text, CONTROL_KEYS), postgresql_where=IS_CONTROL),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"))
    group_id: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default="queued")
    state_reason: Mapped[str | None]
    error: Mapped[dict[str, Any] | None]
    """code, message, param, retryable."""
    version: Mapped[int] = mapped_column(server_default="1")
    """Grows with every change that `GET /jobs/{id}` can show."""
    event_seq: Mapped[int] = mapped_column(server_default="0")
    run: Mapped[int] = mapped_column(Integer, server_default="1")
    held: Mapped[bool] = mapped_column(server_default=text("false"))
    priority: Mapped[str] = mapped_column(server_default="normal")
    spec_version: Mapped[int] = mapped_column(Integer)
    name: Mapped[str | None]
    tags: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    notes: Mapped[str | None]
    preset: Mapped[str | None]
    config: Mapped[dict[str, Any]]
    """The resolved `DistillationConfig`."""
    config_digest: Mapped[str | None]
    """Of all that decides its result; null where a file on a worker's disk does too."""
    cloned_from: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    """The job whose resolved config it started from."""
    changes: Mapped[dict[str, Any] | None]
    """What a clone's config says otherwise: setting -> from, to."""
    identical_to: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    """A finished job with the same result, as it was submitted."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    """When it will be deleted; the sweeper writes what its owner's retention says."""
    deleted_at: Mapped[datetime | None]
    """Since when it is a tombstone: nobody sees it, what it left goes bit by bit."""
    cleared_at: Mapped[datetime | None]
    """Since when its objects, events, logs and metric points are gone."""
    purged_at: Mapped[datetime | None]
    """Since when its cycles and latents are gone too: never, while another job's lineage refers to them."""


class Cycle(Table):
    """The unit of work: one Celery task runs one cycle."""

    __tablename__ = "cycles"
    __table_args__ = (
        UniqueConstraint("job_id", "index"),
        one_of("state", CYCLE_STATES),
        *(Index(name, *columns, postgresql_where=IS_CLAIMABLE) for name, columns in CLAIM_INDEXES.items()),
        Index("ix_cycles_high", "resource_class", postgresql_where=IS_HIGH),
        Index("ix_cycles_input_core_id", "input_core_id", postgresql_where=text("input_core_id IS NOT NULL")),
        Index(
            "ix_cycles_output_core_id", "output_core_id", postgresql_where=text("output_core_id IS NOT NULL")
        ),
        CheckConstraint(
            "(state = 'succeeded' AND selects_core) = (output_core_id IS NOT NULL)", "succeeded_with_core"
        ),
        CheckConstraint('"index" >= 0', "index_not_negative"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    index: Mapped[int] = mapped_column(Integer)
    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"))
    priority_rank: Mapped[int] = mapped_column(SmallInteger, server_default="1")
    """0 high, 1 normal, 2 low: the order of claims."""
    state: Mapped[str]
    state_reason: Mapped[str | None]
    error: Mapped[dict[str, Any] | None]
    resource_class: Mapped[str]
    spec_version: Mapped[int] = mapped_column(Integer)
    cache_key: Mapped[str | None]
    memory_bytes: Mapped[int | None]
    """What it takes of its device at most, by estimate; null where that is not known: it fits everywhere."""
    held: Mapped[bool] = mapped_column(server_default=text("false"))
    """As its job, for the order of claims."""
    selects_core: Mapped[bool] = mapped_column(server_default=text("true"))
    """False for a probe's."""
    n_failed_attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    """Attempts that broke off since one left a checkpoint."""
    n_crashed_attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    """The same, whatever checkpoints were left; a retry by request begins both anew."""
    code_version: Mapped[str | None]
    """Of the code that finished it; null of what finished before that was noted."""
    queued_at: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    """Backoff: a queued cycle is not claimed earlier."""
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    input_core_id: Mapped[str | None] = mapped_column(ForeignKey("cores.id", use_alter=True))
    output_core_id: Mapped[str | None] = mapped_column(ForeignKey("cores.id", use_alter=True))
    metrics: Mapped[dict[str, Any] | None]


class Attempt(Table):
    """One try at a cycle by one worker; every write that it makes names its fencing number."""

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("cycle_id", "number"),
        Index("uq_attempts_open", "cycle_id", unique=True, postgresql_where=text("outcome IS NULL")),
        Index("ix_attempts_closed_at", "closed_at", postgresql_where=text("closed_at IS NOT NULL")),
        Index("ix_attempts_uncleared", "closed_at", postgresql_where=IS_UNCLEARED),
        one_of("phase", PHASES),
        one_of("outcome", OUTCOMES),
        CheckConstraint("(outcome IS NULL) = (closed_at IS NULL)", "closed"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    cycle_id: Mapped[str] = mapped_column(ForeignKey("cycles.id"))
    number: Mapped[int] = mapped_column(Integer)
    fence: Mapped[int] = mapped_column(unique=True)
    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id"), index=True)
    celery_task_id: Mapped[str | None]
    owner_id: Mapped[str | None]
    """This and the next two as its cycle had them when it opened: each claim looks at all open attempts."""
    priority_rank: Mapped[int | None] = mapped_column(SmallInteger)
    cache_key: Mapped[str | None]
    phase: Mapped[str] = mapped_column(server_default="starting")
    progress: Mapped[dict[str, Any] | None]
    """The trainer's last progress line."""
    progress_at: Mapped[datetime | None]
    log_tail: Mapped[str] = mapped_column(server_default="")
    """The end of the trainer's output, secrets removed."""
    outcome: Mapped[str | None]
    error: Mapped[dict[str, Any] | None]
    opened_at: Mapped[datetime] = mapped_column(server_default=func.now())
    lease_expires_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]
    cleared_at: Mapped[datetime | None]
    """Since when nothing of what it stored without success is left."""


class Event(Table):
    """What happened to a job, in order: `seq` is drawn in the transaction of what it tells."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    message: Mapped[str]
    cycle_index: Mapped[int | None] = mapped_column(Integer)
    attempt_number: Mapped[int | None] = mapped_column(Integer)
    data: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class MetricPoint(Table):
    """Progress of training at one step; resuming replaces later steps."""

    __tablename__ = "metric_points"

    cycle_id: Mapped[str] = mapped_column(ForeignKey("cycles.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    fence: Mapped[int]
    n_tokens: Mapped[int]
    loss: Mapped[float | None]
    aux_loss: Mapped[float | None]
    l0: Mapped[float | None]
    l0_core: Mapped[float | None]
    explained_variance: Mapped[float | None]
    explained_variance_first: Mapped[float | None]
    dead_fraction: Mapped[float | None]
    clipped_fraction: Mapped[float | None]
    lr: Mapped[float | None]
    tokens_per_s: Mapped[float | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Artifact(Table):
    """One stored object of a succeeded cycle."""

    __tablename__ = "artifacts"
    __table_args__ = (
        UniqueConstraint("cycle_id", "name"),
        Index("ix_artifacts_deleted_at", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
    )

    object_key: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    cycle_id: Mapped[str] = mapped_column(ForeignKey("cycles.id"))
    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"), index=True)
    name: Mapped[str]
    """Path within the cycle's folder, such as `sae/cfg.json`."""
    size_bytes: Mapped[int]
    sha256: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]
    """Since when its object is to go; the row follows it."""


class Checkpoint(Table):
    """A point from which another attempt may go on."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        Index(
            "ix_checkpoints_superseded_at",
            "superseded_at",
            postgresql_where=text("superseded_at IS NOT NULL"),
        ),
    )

    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    cycle_id: Mapped[str] = mapped_column(ForeignKey("cycles.id"), index=True)
    fence: Mapped[int]
    object_prefix: Mapped[str]
    manifest_sha256: Mapped[str | None]
    """Of its manifest, which was stored last; null where its upload broke off."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    superseded_at: Mapped[datetime | None]
    """Since when its objects are to go; the row follows them."""


class Worker(Table):
    """A process that serves one device."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    hostname: Mapped[str]
    device: Mapped[str]
    """`cpu:0`, `cuda:1`."""
    resource_class: Mapped[str]
    memory_bytes: Mapped[int | None]
    """What the worker may use of it; null where a GPU shares the machine's memory."""
    device_name: Mapped[str | None]
    """What its maker calls it, such as `NVIDIA H100 80GB HBM3`."""
    cache_keys: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    stopped_at: Mapped[datetime | None]
    draining_at: Mapped[datetime | None]
    """Since when somebody wants it to hand its cycle back and end."""
