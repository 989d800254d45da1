"""Ask what became of a job's latents: the same four questions of a distillation and of a training."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from api.dependencies import Cursor, JobId, PartsOf
from api.lineage_schemas import CoreOut, LatentOut, LineageOut, OriginsOut
from api.schemas import CycleList, CycleOut
from dmsae.service import jobs, lineage
from dmsae.service.paging import LARGEST_BIGINT

CycleIndex = Annotated[
    int | None, Query(ge=0, le=10_000, description="Whose core; by default the last cycle's that has one.")
]
MinSelected = Annotated[
    int, Query(ge=1, le=LARGEST_BIGINT, description="Only latents selected in so many unbroken cycles.")
]
Limit = Annotated[int, Query(ge=1, le=1000)]


def add_core_routes(router: APIRouter, kind: Literal["distillation", "training"]) -> None:
    """Add the routes below `/{job_id}` that tell of the cycles of jobs of one kind."""

    @router.get("/{job_id}/cycles")
    def list_cycles(job_id: JobId, parts: PartsOf) -> CycleList:
        """List all cycles, with the metrics of the finished ones."""
        with parts.database.session_scope() as session:
            jobs.find_job(session, job_id, kind=kind)
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
            jobs.find_job(session, job_id, kind=kind)
            wanted = lineage.CoreFilter(cycle_index=cycle_index, min_selected=min_selected)
            return CoreOut.of(lineage.view_core(session, job_id, wanted, cursor=cursor, limit=limit))

    @router.get("/{job_id}/lineage")
    def list_lineage(job_id: JobId, parts: PartsOf, cursor: Cursor = None, limit: Limit = 200) -> LineageOut:
        """List every latent that any core held, with its place in each cycle and when it was dropped."""
        with parts.database.session_scope() as session:
            jobs.find_job(session, job_id, kind=kind)
            page = lineage.list_lineage(session, job_id, cursor=cursor, limit=limit)
            latents = [LatentOut.of(path) for path in page.items]
            return LineageOut(items=latents, next_cursor=page.next_cursor)

    @router.get("/{job_id}/origins")
    def read_origins(job_id: JobId, parts: PartsOf) -> OriginsOut:
        """Count each cycle's core latents by the cycle that they come from."""
        with parts.database.session_scope() as session:
            jobs.find_job(session, job_id, kind=kind)
            return OriginsOut.of(lineage.view_origins(session, job_id))
