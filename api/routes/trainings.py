"""Submit a training around a given core, or a sweep of them, and ask what it found."""

from typing import Annotated

from fastapi import APIRouter, Body

from api import examples
from api.dependencies import JobId, PartsOf
from api.group_schemas import TrainingOut
from api.idempotency import OnceOf
from api.routes.cores import add_core_routes
from api.routes.submissions import SUBMISSION_ANSWERS, SubmissionOut, WantedOf, answer, expand
from dmsae.service import jobs, lineage
from dmsae.service.planning import pin_texts, plan_trainings
from dmsae.service.requests import TrainingRequest

router = APIRouter(prefix="/trainings", tags=["trainings"])

Submission = Annotated[TrainingRequest, Body(examples=examples.TRAINING_SUBMISSIONS)]


@router.post("", status_code=202, responses=SUBMISSION_ANSWERS)
def submit_training(body: Submission, once: OnceOf, wanted: WantedOf) -> SubmissionOut:
    """Check, store and queue a training; what it leaves out is as in the job that its core comes from."""
    parts, request = once.parts, expand(once, body)
    roots = parts.settings.allowed_roots
    plans = parts.database.run(lambda session: plan_trainings(session, request, allowed_roots=roots))
    plans = pin_texts(plans, parts.store, prefixes=parts.settings.data_prefixes)
    return answer(once, wanted, request=request, plans=plans)


@router.get("/{job_id}")
def read_training(job_id: JobId, parts: PartsOf) -> TrainingOut:
    """Show a training: its job, its cycle in short, the core that it was given and the one it selected."""
    with parts.database.session_scope() as session:
        view = jobs.view_job(session, job_id, kind="training")
        given = lineage.find_given(session, job_id)
        return TrainingOut.with_given(view, jobs.list_cycles(session, job_id), given)


add_core_routes(router, "training")
