"""How does a failed job run again? It goes on from the cycle that failed; what was finished is kept.

A checkpoint that is still there is gone on from. What a worker does by itself after an attempt broke off is
the business of `recording.py`.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dmsae.errors import Conflict, Deleted
from dmsae.probe_config import is_probe
from dmsae.service.database import wake_after_commit
from dmsae.service.events import append_event
from dmsae.service.queue_control import require_room, set_rank
from dmsae.service.states import lock_job, move_cycle, move_job
from dmsae.service.tables import Cycle, Job

UNFINISHED = ("queued", "running")
AS_NEW = {
    "error": None,
    "finished_at": None,
    "not_before": None,
    "n_failed_attempts": 0,
    "n_crashed_attempts": 0,
}
"""What a cycle of another run has forgotten of the last one."""


def retry_job(session: Session, job_id: str) -> bool:
    """Queue a failed job again, from its failed cycle on; say whether it was: one that was retried runs on.

    Raises:
        NotFound: there is no such job.
        Deleted: there was.
        Conflict: it has not failed, or a job that it starts from was deleted.
        QuotaExceeded: its owner may not have so many waiting.

    Mutates: its run is one more, the cycles that the failure skipped wait again; workers hear of it.
    """
    state = lock_job(session, job_id).state
    job = session.get_one(Job, job_id, populate_existing=True)
    if job.deleted_at is not None:
        when = job.deleted_at.isoformat(timespec="seconds")
        raise Deleted(f"Job {job_id!r} was deleted at {when}.", id=job_id)
    if state in UNFINISHED and job.run > 1:
        return False
    if state != "failed":
        raise Conflict(f"Job {job_id!r} is {state}: {_rule(state)}.", id=job_id, state=state)
    cycles = _lock_cycles(session, job_id)
    failed = next(cycle for cycle in cycles if cycle.state == "failed")
    _require_sources(session, job)
    require_room(session, job.owner_id, n_jobs=1)
    for cycle in cycles:
        if cycle.state == "skipped":
            move_cycle(session, cycle.id, "waiting", finished_at=None)
    move_cycle(session, failed.id, "queued", queued_at=func.clock_timestamp(), **AS_NEW)
    move_job(session, job_id, "queued")
    set_rank(session, job_id, job.priority)
    run = job.run + 1
    message = f"Retried: run {run} goes on from cycle {failed.index}."
    append_event(session, job_id, "job_retried", message, cycle_index=failed.index, data={"run": run})
    wake_after_commit(session, failed.resource_class)
    return True


def _rule(state: str) -> str:
    if state in UNFINISHED:
        return "only a failed one is retried, and attempts that break off are tried again by themselves"
    if state == "cancelling":
        return "only a failed one is retried; clone it to run it again"
    return 'only a failed one is retried; {"clone": ID} makes another one with its settings'


def _lock_cycles(session: Session, job_id: str) -> list[Cycle]:
    query = select(Cycle).where(Cycle.job_id == job_id).order_by(Cycle.index)
    locked = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    return list(session.scalars(locked))


def _require_sources(session: Session, job: Job) -> None:
    """Refuse a job that starts from another one that was deleted; hold that one so that it is not now."""
    query = select(Job.id, Job.deleted_at).where(Job.id.in_(_sources(job.config))).order_by(Job.id)
    for row in session.execute(query.with_for_update(read=True)):
        if row.deleted_at is not None:
            when = row.deleted_at.isoformat(timespec="seconds")
            rule = f"it starts from job {row.id!r}, which was deleted at {when}"
            raise Conflict(f"Job {job.id!r} cannot be retried: {rule}.", id=job.id)


def _sources(config: Mapping[str, Any]) -> list[str]:
    """List the jobs whose stored cycles a training, a match or a probe starts from."""
    if is_probe(config):
        named = [config["core"], config.get("other") or {}]
        return [core["job"] for core in named if "job" in core]
    refs = [*config.get("cores", ()), (config.get("core") or {}).get("cycle")]
    return [ref["job_id"] for ref in refs if ref is not None]
