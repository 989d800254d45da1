"""Submit a distillation, and ask what it found."""

from typing import Annotated

from fastapi import APIRouter, Body, Query, Response

from api import examples
from api.dependencies import Cursor, JobId, PartsOf
from api.lineage_schemas import CoreOut, LatentOut, LineageOut, OriginsOut
from api.schemas import CycleList, CycleOut, DistillationOut, DryRunOut, JobOut
from api.security import CallerOf
from dmsae.service import estimates, jobs, lineage, submitting
from dmsae.service.paging import LARGEST_BIGINT
from dmsae.service.requests import DistillationRequest
from dmsae.service.retention import retention_of
from dmsae.service.text_objects import pin_objects

router = APIRouter(prefix="/distillations", tags=["distillations"])

Submission = Annotated[DistillationRequest, Body(examples=[examples.SUBMISSION])]
DryRun = Annotated[bool, Query(description="Only say what it would be: 200, and nothing is stored.")]
CycleIndex = Annotated[
    int | None, Query(ge=0, le=10_000, description="Whose core; by default the last cycle's that has one.")
]
MinSelected = Annotated[
    int, Query(ge=1, le=LARGEST_BIGINT, description="Only latents selected in so many unbroken cycles.")
]
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.post(
    "",
    status_code=202,
    responses={200: {"model": DryRunOut, "description": "With `dry_run`."}, 202: {"model": JobOut}},
)
def submit_distillation(
    body: Submission, caller: CallerOf, parts: PartsOf, response: Response, dry_run: DryRun = False
) -> JobOut | DryRunOut:
    """Check, store and queue a distillation; `Location` names the job."""
    config, facts = submitting.resolve(body, allowed_roots=parts.settings.allowed_roots)
    config = pin_objects(config, parts.store, prefixes=parts.settings.data_prefixes)
    if dry_run:
        response.status_code = 200
        default_days = parts.settings.retention_days
        days = parts.database.run(lambda s: retention_of(s, caller.owner_id, default_days=default_days))
        return DryRunOut.model_validate({**estimates.describe(config, facts), "retention_days": days})
    view = parts.database.run(
        lambda session: submitting.submit(session, caller.owner_id, request=body, config=config)
    )
    response.headers["Location"] = f"/jobs/{view.job.id}"
    return JobOut.of(view)


@router.get("/{job_id}")
def read_distillation(job_id: JobId, parts: PartsOf) -> DistillationOut:
    """Show a distillation: its job, its cycles in short, its last core."""
    with parts.database.session_scope() as session:
        view = jobs.view_job(session, job_id, kind="distillation")
        return DistillationOut.with_cycles(view, jobs.list_cycles(session, job_id))


@router.get("/{job_id}/cycles")
def list_cycles(job_id: JobId, parts: PartsOf) -> CycleList:
    """List all cycles, with the metrics of the finished ones."""
    with parts.database.session_scope() as session:
        jobs.find_job(session, job_id, kind="distillation")
        return CycleList(items=[CycleOut.of(view) for view in jobs.list_cycles(session, job_id)])


@router.get("/{job_id}/core")
def read_core(
    job_id: JobId,
    parts: PartsOf,
    cycle_index: CycleIndex = None,
    min_selected: MinSelected = 1,
    cursor: Cursor = None,
    limit: Limit = 1000,
) -> CoreOut:
    """Show the core, or the part of it that was selected in at least `min_selected` cycles."""
    with parts.database.session_scope() as session:
        wanted = lineage.CoreFilter(cycle_index=cycle_index, min_selected=min_selected)
        return CoreOut.of(lineage.view_core(session, job_id, wanted, cursor=cursor, limit=limit))


@router.get("/{job_id}/lineage")
def list_lineage(job_id: JobId, parts: PartsOf, cursor: Cursor = None, limit: Limit = 200) -> LineageOut:
    """List every latent that any core held, with its place in each cycle and when it was dropped."""
    with parts.database.session_scope() as session:
        page = lineage.list_lineage(session, job_id, cursor=cursor, limit=limit)
        return LineageOut(items=[LatentOut.of(path) for path in page.items], next_cursor=page.next_cursor)


@router.get("/{job_id}/origins")
def read_origins(job_id: JobId, parts: PartsOf) -> OriginsOut:
    """Count each cycle's core latents by the cycle that they come from."""
    with parts.database.session_scope() as session:
        return OriginsOut.of(lineage.view_origins(session, job_id))
