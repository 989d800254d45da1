"""How is a submission answered? By one job or a group, or by what it would be; the same for all kinds."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Query, Response

from api import examples
from api.dependencies import Parts
from api.group_schemas import GroupOut
from api.schemas import DryRunGroupOut, DryRunOut, JobOut
from dmsae.service import estimates
from dmsae.service.groups import make_group
from dmsae.service.keys import Caller
from dmsae.service.planning import Plan
from dmsae.service.requests import JobRequest
from dmsae.service.retention import retention_of
from dmsae.service.submitting import submit
from dmsae.service.sweeps import is_group

DryRun = Annotated[bool, Query(description="Only say what it would be: 200, and nothing is stored.")]


def _shown(**named: Any) -> dict[str, Any]:
    return {"application/json": {"examples": {name: {"value": value} for name, value in named.items()}}}


SUBMISSION_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": DryRunOut | DryRunGroupOut,
        "description": "With `dry_run`.",
        "content": _shown(job=examples.DRY_RUN, group=examples.DRY_RUN_GROUP),
    },
    202: {
        "model": JobOut | GroupOut,
        "description": "The job, or the group of several.",
        "content": _shown(job=examples.JOB, group=examples.GROUP),
    },
}


def answer_dry_run(
    parts: Parts, caller: Caller, response: Response, *, request: JobRequest, plans: Sequence[Plan]
) -> DryRunOut | DryRunGroupOut:
    """Say what a submission would be."""
    response.status_code = 200
    default_days = parts.settings.retention_days
    days = parts.database.run(lambda s: retention_of(s, caller.owner_id, default_days=default_days))
    told = [DryRunOut.model_validate({**estimates.describe(plan), "retention_days": days}) for plan in plans]
    return DryRunGroupOut(n_jobs=len(told), jobs=told) if is_group(request, plans) else told[0]


def answer_submission(
    parts: Parts, caller: Caller, response: Response, *, request: JobRequest, plans: Sequence[Plan]
) -> JobOut | GroupOut:
    """Store and queue what was planned; `Location` names it."""
    views = parts.database.run(lambda session: submit(session, caller.owner_id, request=request, plans=plans))
    group_id = views[0].job.group_id
    if group_id is None:
        response.headers["Location"] = f"/jobs/{views[0].job.id}"
        return JobOut.of(views[0])
    response.headers["Location"] = f"/groups/{group_id}"
    return GroupOut.of(make_group(group_id, views))
