"""Submit a distillation, or its chains, and ask what it found."""

from typing import Annotated

from fastapi import APIRouter, Body, Response

from api import examples
from api.dependencies import JobId, PartsOf
from api.group_schemas import GroupOut
from api.routes.cores import add_core_routes
from api.routes.submissions import SUBMISSION_ANSWERS, DryRun, answer_dry_run, answer_submission
from api.schemas import DistillationOut, DryRunGroupOut, DryRunOut, JobOut
from api.security import CallerOf
from dmsae.service import jobs
from dmsae.service.planning import pin_texts, plan_distillations
from dmsae.service.requests import DistillationRequest

router = APIRouter(prefix="/distillations", tags=["distillations"])

Submission = Annotated[DistillationRequest, Body(examples=examples.SUBMISSIONS)]


@router.post("", status_code=202, responses=SUBMISSION_ANSWERS)
def submit_distillation(
    body: Submission, caller: CallerOf, parts: PartsOf, response: Response, dry_run: DryRun = False
) -> JobOut | GroupOut | DryRunOut | DryRunGroupOut:
    """Check, store and queue a distillation; `Location` names the job, or the group of several."""
    plans = plan_distillations(body, allowed_roots=parts.settings.allowed_roots)
    plans = pin_texts(plans, parts.store, prefixes=parts.settings.data_prefixes)
    if dry_run:
        return answer_dry_run(parts, caller, response, request=body, plans=plans)
    return answer_submission(parts, caller, response, request=body, plans=plans)


@router.get("/{job_id}")
def read_distillation(job_id: JobId, parts: PartsOf) -> DistillationOut:
    """Show a distillation: its job, its cycles in short, its last core."""
    with parts.database.session_scope() as session:
        view = jobs.view_job(session, job_id, kind="distillation")
        return DistillationOut.with_cycles(view, jobs.list_cycles(session, job_id))


add_core_routes(router, "distillation")
