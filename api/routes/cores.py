"""Ask what became of a job's latents: the same four questions of a distillation and of a training."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query

from api.dependencies import Cursor, JobId, PartsOf
from api.latent_schemas import LineageRow, OriginRow
from api.lineage_schemas import CoreLatentOut, CoreOut, LatentOut, LineageOut, OriginsOut
from api.row_streams import BATCH, ROW_ANSWERS, Format, FormatOf, Rows, refuse_paging, stream_rows
from api.schemas import CycleList, CycleOut
from dmsae.service import jobs, lineage
from dmsae.service.database import Transaction
from dmsae.service.lineage import CoreFilter
from dmsae.service.paging import LARGEST_BIGINT

Kind = Literal["distillation", "training"]
CycleIndex = Annotated[
    int | None, Query(ge=0, le=10_000, description="Whose core; by default the last cycle's that has one.")
]
MinSelected = Annotated[
    int, Query(ge=1, le=LARGEST_BIGINT, description="Only latents selected in so many unbroken cycles.")
]
Limit = Annotated[int | None, Query(ge=1, le=1000, description="Entries of a page.")]


@dataclass(frozen=True)
class Paging:
    """How a list is answered: a page of it, or all of it as rows."""

    format: Format
    cursor: str | None
    limit: int | None


def get_paging(format: FormatOf = "json", cursor: Cursor = None, limit: Limit = None) -> Paging:
    """Give how a list is answered.

    Raises:
        InvalidConfig: a page of something that comes as a whole.
    """
    refuse_paging(format, cursor=cursor, limit=limit)
    return Paging(format, cursor, limit)


def get_core_filter(cycle_index: CycleIndex = None, min_selected: MinSelected = 1) -> CoreFilter:
    """Give which core, and which part of it."""
    return CoreFilter(cycle_index=cycle_index, min_selected=min_selected)


PagingOf = Annotated[Paging, Depends(get_paging)]
CoreFilterOf = Annotated[CoreFilter, Depends(get_core_filter)]


def add_core_routes(router: APIRouter, kind: Kind) -> None:
    """Add the routes below `/{job_id}` that tell of the cycles of jobs of one kind."""

    @router.get("/{job_id}/cycles")
    def list_cycles(job_id: JobId, parts: PartsOf) -> CycleList:
        """List all cycles, with the metrics of the finished ones."""
        with parts.database.session_scope() as session:
            jobs.find_job(session, job_id, kind=kind)
            return CycleList(items=[CycleOut.of(view) for view in jobs.list_cycles(session, job_id)])

    _add_core(router, kind)
    _add_lineage(router, kind)
    _add_origins(router, kind)


def _add_core(router: APIRouter, kind: Kind) -> None:
    @router.get("/{job_id}/core", response_model=CoreOut, responses=ROW_ANSWERS)
    def read_core(job_id: JobId, parts: PartsOf, wanted: CoreFilterOf, paging: PagingOf) -> Any:
        """Show the core, or the part of it that was selected in at least `min_selected` cycles."""

        def read(session: Transaction, cursor: str | None) -> tuple[Rows, str | None]:
            core = lineage.view_core(session, job_id, wanted, cursor=cursor, limit=BATCH)
            return [CoreLatentOut.of(member) for member in core.members.items], core.members.next_cursor

        with parts.database.session_scope() as session:
            jobs.find_job(session, job_id, kind=kind)
            if paging.format == "json":
                cursor, limit = paging.cursor, paging.limit or 1000
                core = lineage.view_core(session, job_id, wanted, cursor=cursor, limit=limit)
                return CoreOut.of(core)
        return stream_rows(parts, CoreLatentOut, read, kind=paging.format, name=f"{job_id}-core")


def _add_lineage(router: APIRouter, kind: Kind) -> None:
    @router.get("/{job_id}/lineage", response_model=LineageOut, responses=ROW_ANSWERS)
    def list_lineage(job_id: JobId, parts: PartsOf, paging: PagingOf) -> Any:
        """List every latent that any core held, with its place in each cycle and when it was dropped."""

        def read(session: Transaction, cursor: str | None) -> tuple[Rows, str | None]:
            page = lineage.list_lineage(session, job_id, cursor=cursor, limit=BATCH)
            return [row for path in page.items for row in LineageRow.of(path)], page.next_cursor

        with parts.database.session_scope() as session:
            jobs.find_job(session, job_id, kind=kind)
            if paging.format == "json":
                cursor, limit = paging.cursor, paging.limit or 200
                found = lineage.list_lineage(session, job_id, cursor=cursor, limit=limit)
                latents = [LatentOut.of(path) for path in found.items]
                return LineageOut(items=latents, next_cursor=found.next_cursor)
        return stream_rows(parts, LineageRow, read, kind=paging.format, name=f"{job_id}-lineage")


def _add_origins(router: APIRouter, kind: Kind) -> None:
    @router.get("/{job_id}/origins", response_model=OriginsOut, responses=ROW_ANSWERS)
    def read_origins(job_id: JobId, parts: PartsOf, format: FormatOf = "json") -> Any:
        """Count each cycle's core latents by the cycle that they come from."""
        with parts.database.session_scope() as session:
            jobs.find_job(session, job_id, kind=kind)
            found = lineage.view_origins(session, job_id)
        if format == "json":
            return OriginsOut.of(found)
        rows = OriginRow.of(found)
        name = f"{job_id}-origins"
        return stream_rows(parts, OriginRow, lambda *_: (rows, None), kind=format, name=name)
