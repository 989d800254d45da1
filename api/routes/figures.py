"""See what a job found, and how several compare: as figures, and as the data behind them."""

from fastapi import APIRouter, Request, Response

from api.dependencies import JobId, PartsOf
from api.figure_answers import IsKnown, Wanted, answer_figure
from api.figure_schemas import FIGURE_ANSWERS, ComparisonOut, FigureOf, FormOf, JobsOf, OverOf, ThemeOf
from dmsae.figures.tables import FigureData
from dmsae.service import comparisons, figure_data
from dmsae.service.database import Transaction

router = APIRouter(tags=["figures"])


@router.get("/jobs/{job_id}/figures/{figure}.{form}", response_class=Response, responses=FIGURE_ANSWERS)
async def show_job_figure(
    job_id: JobId, figure: FigureOf, form: FormOf, parts: PartsOf, request: Request, theme: ThemeOf = "light"
) -> Response:
    """Draw a job's origins, flow, curves or density, or give the data; without any: `nothing_to_draw`."""

    def read(session: Transaction, is_known: IsKnown) -> tuple[str, FigureData | None]:
        seen = str(figure_data.find_version(session, job_id))
        return seen, None if is_known(seen) else figure_data.collect(session, job_id, figure)

    return await answer_figure(request, parts, Wanted(form, theme, f"{job_id}-{figure}"), read)


@router.get("/figures/compare.{form}", response_class=Response, responses=FIGURE_ANSWERS)
async def show_comparison(
    form: FormOf, jobs: JobsOf, parts: PartsOf, request: Request, over: OverOf = "k", theme: ThemeOf = "light"
) -> Response:
    """Draw how jobs compare: loss recovered, explained variance, CE increase, beside their controls."""

    def read(session: Transaction, is_known: IsKnown) -> tuple[str, FigureData | None]:
        data = comparisons.compare(session, jobs.split(","), over=over)
        return data.digest, None if is_known(data.digest) else data

    return await answer_figure(request, parts, Wanted(form, theme, "compare"), read)


@router.get("/figures/compare")
def read_comparison(jobs: JobsOf, parts: PartsOf, over: OverOf = "k") -> ComparisonOut:
    """Give how jobs compare as JSON: each job's figures, their means, and the controls that are missing."""
    with parts.database.session_scope() as session:
        return ComparisonOut.of(comparisons.compare(session, jobs.split(","), over=over))
