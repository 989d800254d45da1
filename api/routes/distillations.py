"""Submit a distillation, or its chains, and ask what it found."""

from typing import Annotated

from fastapi import APIRouter, Body
from starlette.concurrency import run_in_threadpool

from api import examples
from api.dependencies import JobId, PartsOf
from api.idempotency import Once, OnceOf
from api.routes.cores import add_core_routes
from api.routes.submissions import SUBMISSION_ANSWERS, SubmissionOut, Wanted, WantedOf, answer, expand
from api.schemas import DistillationOut
from dmsae.service import jobs
from dmsae.service.planning import pin_texts, plan_distillations
from dmsae.service.requests import DistillationRequest

router = APIRouter(prefix="/distillations", tags=["distillations"])

Submission = Annotated[DistillationRequest, Body(examples=examples.SUBMISSIONS)]


@router.post("", status_code=202, responses=SUBMISSION_ANSWERS)
async def submit_distillation(body: Submission, once: OnceOf, wanted: WantedOf) -> SubmissionOut:
    """Check, store and queue a distillation; `Location` names the job, or the group of several."""
    return await run_in_threadpool(_submit, body, once, wanted)


def _submit(body: DistillationRequest, once: Once, wanted: Wanted) -> SubmissionOut:
    settings, request = once.parts.settings, expand(once, body)
    plans = plan_distillations(request, allowed_roots=settings.allowed_roots)
    plans = pin_texts(plans, once.parts.store, prefixes=settings.data_prefixes)
    return answer(once, wanted, request=request, plans=plans)


@router.get("/{job_id}")
def read_distillation(job_id: JobId, parts: PartsOf) -> DistillationOut:
    """Show a distillation: its job, its cycles in short, its last core."""
    with parts.database.session_scope() as session:
        view = jobs.view_job(session, job_id, kind="distillation")
        return DistillationOut.with_cycles(view, jobs.list_cycles(session, job_id))


add_core_routes(router, "distillation")
