"""See how training went, step by step."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from api.dependencies import JobId, PartsOf
from api.watching_schemas import STEP_METRICS_CSV, StepMetrics, as_csv
from dmsae.service import step_metrics
from dmsae.service.leases import POINT_VALUES, PointValue

router = APIRouter(prefix="/jobs", tags=["jobs"])

Columns = Annotated[
    list[PointValue] | None, Query(max_length=20, description="Which figures, once for each; all by default.")
]
Points = Annotated[int, Query(ge=1, le=5000, description="Of each cycle, at most.")]
CycleIndex = Annotated[int | None, Query(ge=0, le=2**31 - 1, description="Only this cycle.")]
TABLE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/csv": {"schema": {"type": "string"}, "example": STEP_METRICS_CSV}}}
}


@router.get("/{job_id}/metrics", response_model=StepMetrics, responses=TABLE)
def list_step_metrics(
    job_id: JobId,
    parts: PartsOf,
    column: Columns = None,
    points: Points = 500,
    cycle_index: CycleIndex = None,
    format: Annotated[Literal["json", "csv"], Query()] = "json",
) -> StepMetrics | Response:
    """Show each cycle's figures by step; of more points than wanted, runs are shown by their means."""
    columns = tuple(dict.fromkeys(column or POINT_VALUES))
    with parts.database.session_scope() as session:
        found = step_metrics.list_series(
            session, job_id, columns=columns, points=points, cycle_index=cycle_index
        )
    if format == "csv":
        return Response(as_csv(found, columns), media_type="text/csv")
    return StepMetrics.of(found)
