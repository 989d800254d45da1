"""How is a submission answered? By one job or a group, by what it would be, or by a job that did the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, TypeVar

from fastapi import Depends, Query

from api import examples
from api.group_schemas import GroupOut
from api.idempotency import Made, Once
from api.schemas import JobOut
from api.submission_schemas import DryRunGroupOut, DryRunOut, ReusedOut
from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.service import clones, estimates
from dmsae.service.database import Transaction
from dmsae.service.groups import make_group
from dmsae.service.jobs import view_job
from dmsae.service.planning import Plan
from dmsae.service.requests import JobRequest
from dmsae.service.retention import retention_of
from dmsae.service.submitting import find_repeated, submit
from dmsae.service.sweeps import is_group

Request = TypeVar("Request", bound=JobRequest)
Stored: TypeAlias = JobOut | GroupOut | ReusedOut
SubmissionOut: TypeAlias = Stored | DryRunOut | DryRunGroupOut


@dataclass(frozen=True)
class Wanted:
    """What a submission asks for beside its body."""

    is_dry_run: bool
    is_reuse: bool


async def wanted(
    dry_run: Annotated[
        bool, Query(description="Only say what it would be: 200, and nothing is stored.")
    ] = False,
    reuse: Annotated[
        bool,
        Query(
            description="Where a job has finished with the same config, data and code, answer that one (200,"
            " `reused`) instead of a new one. Of one job, not of a group."
        ),
    ] = False,
) -> Wanted:
    """Read what is asked for in the query."""
    return Wanted(dry_run, reuse)


WantedOf = Annotated[Wanted, Depends(wanted)]


def _shown(**named: Any) -> dict[str, Any]:
    return {"application/json": {"examples": {name: {"value": value} for name, value in named.items()}}}


SUBMISSION_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": DryRunOut | DryRunGroupOut | ReusedOut,
        "description": "With `dry_run`; or with `reuse`, a job that did the same.",
        "content": _shown(job=examples.DRY_RUN, group=examples.DRY_RUN_GROUP, reused=examples.REUSED),
    },
    202: {
        "model": JobOut | GroupOut,
        "description": "The job, or the group of several.",
        "content": _shown(job=examples.JOB, group=examples.GROUP),
    },
}


def expand(once: Once, request: Request) -> Request:
    """Put the settings of the job that a request clones into it."""
    if request.clone is None:
        return request
    return once.parts.database.run(lambda session: clones.expand(session, request))


def answer(once: Once, wanted: Wanted, *, request: JobRequest, plans: Sequence[Plan]) -> SubmissionOut:
    """Answer a submission that was planned, as its query asks for."""
    if wanted.is_reuse and is_group(request, plans):
        rule = "answers one job, and this makes a group: leave it out, or submit its jobs one by one"
        raise InvalidConfig([FieldProblem("reuse", True, rule)])
    if wanted.is_dry_run:
        return _dry_run(once, request, plans)
    return once.run(lambda session: _made(session, once, wanted, request, plans))


def _dry_run(once: Once, request: JobRequest, plans: Sequence[Plan]) -> DryRunOut | DryRunGroupOut:
    once.response.status_code = 200
    default_days = once.parts.settings.retention_days
    days = once.parts.database.run(lambda s: retention_of(s, once.caller.owner_id, default_days=default_days))
    repeated = once.parts.database.run(lambda s: find_repeated(s, plans))
    told = [
        DryRunOut.model_validate({**estimates.describe(plan), "retention_days": days, "identical_to": job_id})
        for plan, job_id in zip(plans, repeated, strict=True)
    ]
    return DryRunGroupOut(n_jobs=len(told), jobs=told) if is_group(request, plans) else told[0]


def _made(
    session: Transaction, once: Once, wanted: Wanted, request: JobRequest, plans: Sequence[Plan]
) -> Made[Stored]:
    """Store and queue what was planned, unless a job that did the same is wanted and there; name it."""
    if wanted.is_reuse:
        (job_id,) = find_repeated(session, plans)
        if job_id is not None:
            return Made(ReusedOut.of(view_job(session, job_id)), 200, f"/jobs/{job_id}")
    views = submit(session, once.caller.owner_id, request=request, plans=plans)
    group_id = views[0].job.group_id
    if group_id is None:
        return Made(JobOut.of(views[0]), 202, f"/jobs/{views[0].job.id}")
    return Made(GroupOut.of(make_group(group_id, views)), 202, f"/groups/{group_id}")
