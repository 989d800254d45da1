"""How do planned jobs become rows: a job and its cycles, or a group of jobs, whole or not at all?"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from dmsae.config import SPEC_VERSION, DistillationConfig
from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.service.cache_keys import cache_key
from dmsae.service.clones import list_changes
from dmsae.service.cycle_sources import note_sources
from dmsae.service.database import wake_after_commit
from dmsae.service.events import FIRST_EVENT, begin_histories
from dmsae.service.ids import new_id
from dmsae.service.memory import peak_memory
from dmsae.service.planning import Plan
from dmsae.service.progress import JobView, view_queued
from dmsae.service.queue_control import require_room
from dmsae.service.repeats import config_digest, find_identical
from dmsae.service.requests import PRIORITY_RANKS, JobRequest
from dmsae.service.sweeps import is_group
from dmsae.service.tables import Cycle, Job
from dmsae.service.text_objects import object_keys
from dmsae.service.uploads import note_use
from dmsae.service.waiting import look

RESOURCE_CLASSES = {"cpu": "cpu", "cuda": "gpu"}
"""Device of a config -> class of the workers that have it."""


def submit(session: Session, owner_id: str, *, request: JobRequest, plans: Sequence[Plan]) -> list[JobView]:
    """Store the jobs of a request with their cycles, the first of each queued; all of a group share its id.

    Workers hear of them after the commit.

    Raises:
        InvalidConfig: an upload that they name, or a job that they start from, was deleted meanwhile.
        QuotaExceeded: their owner may not have so many waiting.
    """
    owner = require_room(session, owner_id, n_jobs=len(plans))
    _hold_sources(session, plans)
    group_id = new_id("group") if is_group(request, plans) else None
    origin = None if request.cloned_from is None else session.get_one(Job, request.cloned_from)
    digests = _digests(plans)
    identical = find_identical(session, digests)
    jobs = []
    for plan, digest in zip(plans, digests, strict=True):
        job = _make_job(owner_id, request, plan, group_id)
        job.config_digest, job.identical_to = digest, identical.get(digest or "")
        if origin is not None:
            job.cloned_from, job.changes = origin.id, list_changes(origin.config, job.config)
        jobs.append(job)
    cycles = _store(session, jobs, plans)
    standing = look(session)
    return [
        view_queued(job, cycle, n_cycles=plan.n_cycles, owner=owner, standing=standing)
        for job, cycle, plan in zip(jobs, cycles, plans, strict=True)
    ]


def _hold_sources(session: Session, plans: Sequence[Plan]) -> None:
    """Lock the jobs that trainings start from, so that none is deleted before that is known of it."""
    job_ids = {plan.given.job_id for plan in plans if plan.given is not None and plan.n_given}
    if not job_ids:
        return
    query = select(Job.id, Job.deleted_at).where(Job.id.in_(job_ids)).order_by(Job.id)
    rows = session.execute(query.with_for_update(read=True))
    rule = "the job was deleted a moment ago"
    deleted = [row.id for row in rows if row.deleted_at is not None]
    if deleted:
        raise InvalidConfig(
            [FieldProblem("core.cycle.job_id", job_id, rule, "core_deleted") for job_id in deleted]
        )


def find_repeated(session: Session, plans: Sequence[Plan]) -> list[str | None]:
    """Give for each plan a finished job that did the same, None where there is none."""
    digests = _digests(plans)
    identical = find_identical(session, digests)
    return [identical.get(digest or "") for digest in digests]


def _digests(plans: Sequence[Plan]) -> list[str | None]:
    return [config_digest(plan.config) for plan in plans]


def _make_job(owner_id: str, request: JobRequest, plan: Plan, group_id: str | None) -> Job:
    return Job(
        id=new_id("job"),
        kind=plan.kind,
        owner_id=owner_id,
        group_id=group_id,
        priority=request.priority,
        spec_version=SPEC_VERSION,
        name=request.name,
        tags=request.tags,
        notes=request.notes,
        preset=request.preset,
        config=plan.config.model_dump(mode="json"),
        **FIRST_EVENT,
    )


def _store(session: Session, jobs: Sequence[Job], plans: Sequence[Plan]) -> list[Cycle]:
    """Write jobs with their cycles, sources and first events, each kind at once; give the first cycles."""
    session.add_all(jobs)
    session.flush()
    by_job = [_make_cycles(job, plan) for job, plan in zip(jobs, plans, strict=True)]
    session.connection().execute(insert(Cycle), [row for rows in by_job for row in rows])
    for job, plan, rows in zip(jobs, plans, by_job, strict=True):
        note_use(session, job.id, object_keys(plan.config))
        if plan.given is not None and plan.n_given:
            note_sources(session, rows[0]["id"], [plan.given.cycle_id])
        wake_after_commit(session, rows[0]["resource_class"])
    begin_histories(session, {job.id: _told(plan) for job, plan in zip(jobs, plans, strict=True)})
    return [Cycle(**rows[0]) for rows in by_job]


def _told(plan: Plan) -> tuple[str, str, dict[str, Any]]:
    return "job_queued", _say_queued(plan), {"n_cycles": plan.n_cycles}


def _say_queued(plan: Plan) -> str:
    if isinstance(plan.config, DistillationConfig):
        return f"A distillation of {plan.n_cycles} cycles was queued."
    kind = plan.config.core.kind.replace("_", " ")
    around = "no core" if kind == "none" else f"a core of {plan.n_given} latents ({kind})"
    return f"A training around {around} was queued."


def _make_cycles(job: Job, plan: Plan) -> list[dict[str, Any]]:
    """Make the rows of a job's cycles; who may run them, and where best, is the same for each."""
    peak = peak_memory(plan.config, plan.facts)
    key = cache_key(plan.config)
    return [
        {
            "id": new_id("cycle"),
            "job_id": job.id,
            "index": index,
            "owner_id": job.owner_id,
            "priority_rank": PRIORITY_RANKS[job.priority],
            "state": "waiting" if index else "queued",
            "resource_class": RESOURCE_CLASSES[plan.config.device],
            "spec_version": job.spec_version,
            "cache_key": key,
            "memory_bytes": None if peak is None else peak.device,
            "queued_at": None if index else job.created_at,
        }
        for index in range(plan.n_cycles)
    ]
