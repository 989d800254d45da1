"""What the API answers about jobs and its own health, field by field."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from api import examples
from dmsae.service.health import PartHealth, Status
from dmsae.service.jobs import ArtifactView, AttemptView, CycleView
from dmsae.service.objects import PutLink
from dmsae.service.paging import Page
from dmsae.service.progress import JobView
from dmsae.service.tables import Event
from dmsae.service.upload_tables import Upload


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True, ser_json_inf_nan="null")


def example_of(value: dict[str, Any]) -> ConfigDict:
    """Give the model settings that show an example of an answer."""
    return ConfigDict(json_schema_extra={"examples": [value]})


class ProgressOut(Answer):
    """Where a job stands; the numbers of the cycle in hand come from its trainer's last line."""

    n_cycles: int
    n_cycles_done: int
    cycle_index: int | None
    """The cycle that runs or is queued."""
    attempt_number: int | None
    phase: str | None
    """starting, loading, harvesting, training, attributing, evaluating or uploading."""
    latest: dict[str, Any] | None
    """step, n_steps, n_tokens, loss, l0, explained_variance, tokens_per_s, time_left_s of this cycle, ..."""
    time_left_s: float | None
    """Of the whole job, judged by its cycles so far; null while unknown."""
    queue_position: int | None
    """How many queued cycles come first, in the order of claims; null if none of this job is queued, or its
    place is not known yet."""
    starts_in_s: float | None
    """When the queued cycle would begin if nothing else came; null while nothing can be told."""
    queue_seen_at: datetime | None
    """When place and start were last worked out."""


class JobSummary(Answer):
    """A job in a list."""

    id: str
    kind: str
    owner: str
    name: str | None
    tags: list[str]
    notes: str | None
    priority: str
    state: str
    """queued, running, cancelling, succeeded, failed or cancelled."""
    state_reason: str | None
    """One sentence: why it waits, or why it ended as it did."""
    error: dict[str, Any] | None
    """code, message, param, retryable, if it failed; `cause`, the last code, after too many attempts."""
    held: bool
    group_id: str | None
    preset: str | None
    model: str | None
    """What its language model is called: its id on the hub, its path, or its name."""
    run: int
    version: int
    """Grows with every change; `GET /jobs/{id}` gives it as its ETag."""
    spec_version: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    """When it will be deleted; null: never, or not known yet, within a minute of its end."""
    stored_bytes: int
    """Size of all that its finished cycles stored."""
    progress: ProgressOut
    links: dict[str, str]

    @classmethod
    def of(cls, view: JobView) -> Self:
        """Show a job."""
        seen = cls.model_fields.keys() & {"owner", "state_reason", "stored_bytes", "model", "in_use"}
        stored = cls.model_fields.keys() - seen - {"progress", "links"}
        return cls(
            **{name: getattr(view.job, name) for name in stored},
            **{name: getattr(view, name) for name in seen},
            progress=ProgressOut.model_validate(view.progress),
            links=_links(view.job.id, view.job.kind),
        )


class JobOut(JobSummary):
    """A job, with its resolved config."""

    model_config = example_of(examples.JOB)

    config: dict[str, Any]
    """Every setting, as the trainer gets it."""
    in_use: dict[str, Any] | None
    """What the trainer really loaded (model_revision, model_type, model_dtype, attention, device, n_layers,
    d_model) and the path of the module whose output it takes; null before the first cycle has."""
    cloned_from: str | None
    """The job whose resolved config it started from."""
    changes: dict[str, dict[str, Any]] | None
    """What a clone's config says otherwise: for each setting `from` and `to`."""
    identical_to: str | None
    """A job that had finished with the same config, data and code when this one was submitted: the same
    result. `?reuse=true` answers that one instead."""


class JobList(Answer):
    """A page of jobs, the newest first."""

    model_config = example_of(examples.JOB_LIST)

    items: list[JobSummary]
    next_cursor: str | None
    """Send it as `cursor` for the next page; null at the end."""

    @classmethod
    def of(cls, page: Page[JobView]) -> Self:
        """Show a page."""
        return cls(items=[JobSummary.of(view) for view in page.items], next_cursor=page.next_cursor)


class CycleOut(Answer):
    """One cycle."""

    index: int
    state: str
    """waiting, queued, running, succeeded, failed, cancelled or skipped."""
    state_reason: str | None
    error: dict[str, Any] | None
    n_attempts: int
    resource_class: str
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    input_core_id: str | None
    output_core_id: str | None
    stored_bytes: int
    """Size of all that it stored."""
    metrics: dict[str, Any] | None
    """Of the finished cycle."""
    code_version: str | None
    """Names the code that finished it: another name, perhaps another result."""

    @classmethod
    def of(cls, view: CycleView) -> Self:
        """Show a cycle."""
        counted = {"n_attempts": view.n_attempts, "stored_bytes": view.stored_bytes}
        names = cls.model_fields.keys() - counted.keys()
        return cls(**{name: getattr(view.cycle, name) for name in names}, **counted)


class CycleList(Answer):
    """All cycles of a job, in order."""

    model_config = example_of(examples.CYCLE_LIST)

    items: list[CycleOut]


class DistillationOut(JobOut):
    """A distillation: the job, and its science in short."""

    model_config = example_of(examples.DISTILLATION)

    cycles: list[CycleOut]
    last_core_id: str | None
    """Of the last cycle that selected one."""

    @classmethod
    def with_cycles(cls, view: JobView, cycles: Sequence[CycleView]) -> Self:
        """Show a distillation."""
        shown = [CycleOut.of(cycle) for cycle in cycles]
        last = [cycle.output_core_id for cycle in shown if cycle.output_core_id is not None]
        return cls(**dict(JobOut.of(view)), cycles=shown, last_core_id=last[-1] if last else None)


class EventOut(Answer):
    """One thing that happened."""

    seq: int
    kind: str
    message: str
    cycle_index: int | None
    attempt_number: int | None
    data: dict[str, Any]
    created_at: datetime


class EventList(Answer):
    """Events in order; they are only ever appended."""

    model_config = example_of(examples.EVENT_LIST)

    items: list[EventOut]
    after: int
    """Send it as `after` for what comes next."""

    @classmethod
    def of(cls, events: Sequence[Event], after: int) -> Self:
        """Show events, and where the next ones begin."""
        items = [EventOut.model_validate(event) for event in events]
        return cls(items=items, after=items[-1].seq if items else after)


class LogOut(Answer):
    """The end of what one attempt's trainer printed, secrets removed."""

    cycle_index: int
    attempt_number: int
    attempt_id: str
    worker_id: str
    celery_task_id: str | None
    phase: str
    outcome: str | None
    error: dict[str, Any] | None
    opened_at: datetime
    closed_at: datetime | None
    text: str

    @classmethod
    def of(cls, view: AttemptView) -> Self:
        """Show an attempt's output."""
        attempt = view.attempt
        same = ("worker_id", "celery_task_id", "phase", "outcome", "error", "opened_at", "closed_at")
        return cls(
            **{name: getattr(attempt, name) for name in same},
            cycle_index=view.cycle_index,
            attempt_number=attempt.number,
            attempt_id=attempt.id,
            text=attempt.log_tail,
        )


class LogList(Answer):
    """All attempts of a job, in order."""

    model_config = example_of(examples.LOG_LIST)

    items: list[LogOut]


class ArtifactOut(Answer):
    """One stored file, with a link that needs no key and works for a while."""

    cycle_index: int
    name: str
    size_bytes: int
    sha256: str
    url: str

    @classmethod
    def of(cls, view: ArtifactView, url: str) -> Self:
        """Show a stored file."""
        same = {name: getattr(view.artifact, name) for name in ("name", "size_bytes", "sha256")}
        return cls(cycle_index=view.cycle_index, **same, url=url)


class ArtifactList(Answer):
    """All stored files of a job's finished cycles."""

    model_config = example_of(examples.ARTIFACT_LIST)

    items: list[ArtifactOut]


class UploadOut(Answer):
    """Where to put a file: by one PUT of exactly its bytes, with these headers, before the link expires."""

    model_config = example_of(examples.UPLOAD)

    id: str
    key: str
    """What `data.text.objects` names it by."""
    filename: str
    size_bytes: int
    method: Literal["PUT"]
    url: str
    """Needs no API key; send none with it."""
    headers: dict[str, str]
    """All of them are needed."""
    expires_at: datetime
    """Of the link."""
    kept_days: int
    """The file is deleted when no job has named it for so long."""

    @classmethod
    def of(cls, upload: Upload, link: PutLink, *, kept_days: int) -> Self:
        """Show an upload with its link."""
        same = {name: getattr(upload, name) for name in ("id", "filename", "size_bytes")}
        return cls(
            **same,
            key=upload.object_key,
            method="PUT",
            url=link.url,
            headers=link.headers,
            expires_at=link.expires_at,
            kept_days=kept_days,
        )


class PartOut(Answer):
    """Whether one part answers."""

    status: Status
    detail: str | None


class ReadinessOut(Answer):
    """Whether every part that the service stands on answers."""

    model_config = example_of(examples.READINESS)

    status: Status
    parts: dict[str, PartOut]

    @classmethod
    def of(cls, found: dict[str, PartHealth]) -> Self:
        """Show all parts."""
        is_ok = all(part.status == "ok" for part in found.values())
        parts = {name: PartOut.model_validate(part) for name, part in found.items()}
        return cls(status="ok" if is_ok else "failed", parts=parts)


class AliveOut(Answer):
    """The process answers."""

    model_config = example_of(examples.ALIVE)

    status: Status


def _links(job_id: str, kind: str) -> dict[str, str]:
    links = {"self": f"/jobs/{job_id}"}
    names = ("cancel", "retry", "events", "metrics", "logs", "artifacts")
    links |= {name: f"/jobs/{job_id}/{name}" for name in names}
    if kind in ("distillation", "training"):
        links[kind] = f"/{kind}s/{job_id}"
        links |= {name: f"/{kind}s/{job_id}/{name}" for name in ("cycles", "core", "lineage", "origins")}
    if kind == "probe":
        links[kind] = f"/probes/{job_id}"
    return links
