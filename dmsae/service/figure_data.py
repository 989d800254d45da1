"""What is there to draw of a job? Rows as the figures want them; nothing to draw is refused, never drawn."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dmsae.errors import NotFound
from dmsae.figures.data import (
    CURVES,
    Curve,
    CurvesData,
    DensityData,
    FlowData,
    Origin,
    OriginsData,
    Point,
    Stage,
    Subject,
)
from dmsae.service.jobs import find_job
from dmsae.service.lineage import find_given, view_origins
from dmsae.service.step_metrics import list_series
from dmsae.service.tables import Core, CoreLatent, Cycle, Job, Latent

JobFigure = Literal["origins", "flow", "curves", "density"]
JobFigureData = OriginsData | FlowData | CurvesData | DensityData

MOST_STEPS = 500
"""Points of each cycle's curve; runs of more are taken together."""
MOST_LATENTS = 50_000
"""Points of a density figure; of a larger core every so-manieth latent is taken."""


class NothingToDraw(NotFound):
    """There is nothing to draw yet."""

    code = "nothing_to_draw"


def find_version(session: Session, job_id: str) -> int:
    """Give the version of a job, which grows with all that a figure of it shows.

    Raises:
        NotFound: there is no such job.
    """
    return find_job(session, job_id).version


def collect(session: Session, job_id: str, figure: JobFigure) -> JobFigureData:
    """Collect what a figure shows.

    Raises:
        NotFound: there is no such job.
        NothingToDraw: it has not come so far, or is of a kind that never does.
    """
    return COLLECTORS[figure](session, find_job(session, job_id))


def collect_origins(session: Session, job: Job) -> OriginsData:
    """Count each core's latents by the cycle that they come from.

    Raises:
        NothingToDraw: no cycle has selected a core.
    """
    found = view_origins(session, job.id)
    if not any(map(any, found.matrix)):
        raise _without_core(job, "origins")
    origins = [Origin(*origin) for origin in found.origins]
    return OriginsData(_subject(job), found.cycles, origins, found.matrix)


def collect_flow(session: Session, job: Job) -> FlowData:
    """Count by origin what each cycle kept and added; a training begins with the core that it was given.

    Raises:
        NothingToDraw: no cycle has selected a core.
    """
    selected = session.execute(
        select(Cycle.index, Cycle.output_core_id)
        .where(Cycle.job_id == job.id, Cycle.output_core_id.is_not(None))
        .order_by(Cycle.index)
    ).all()
    if not selected:
        raise _without_core(job, "flow")
    given = find_given(session, job.id)
    cores: list[tuple[int | None, str]] = [(None, given.id)] if given is not None else []
    cores += [(index, str(core_id)) for index, core_id in selected]
    counts = _count_by_origin(session, [core_id for _, core_id in cores])
    stages = [Stage(index, *counts[core_id]) for index, core_id in cores]
    if given is not None:  # it was kept of its source, not of anything that is drawn
        stages[0] = Stage(None, {}, stages[0].totals)
    origins = _in_order((origin for stage in stages for origin in stage.totals), job.id)
    return FlowData(_subject(job), origins, stages)


def collect_curves(session: Session, job: Job) -> CurvesData:
    """Give the steps of each cycle.

    Raises:
        NothingToDraw: no step was recorded, or its steps were deleted.
    """
    found = list_series(session, job.id, columns=tuple(CURVES), points=MOST_STEPS)
    if not found:
        raise NothingToDraw(f"No step of the training of {job.id} was recorded (yet).", id=job.id)
    curves = [
        Curve(
            series.cycle_index,
            series.n_recorded,
            series.columns["step"],
            series.columns["n_tokens"],
            {name: series.columns[name] for name in CURVES},
        )
        for series in found
    ]
    return CurvesData(_subject(job), curves)


def collect_density(session: Session, job: Job) -> DensityData:
    """Give density and score of each latent of the last core that the job selected.

    Raises:
        NothingToDraw: no cycle has selected a core, or no latent of it has a density above 0.
    """
    last = session.execute(
        select(Cycle.index, Core.id, Core.n_latents)
        .join(Core, Core.id == Cycle.output_core_id)
        .where(Cycle.job_id == job.id)
        .order_by(Cycle.index.desc())
        .limit(1)
    ).one_or_none()
    if last is None:
        raise _without_core(job, "density")
    index, core_id, n_latents = last
    stride = -(-n_latents // MOST_LATENTS)
    place, of = CoreLatent, Latent
    rows = session.execute(
        select(of.public_id, place.core_index, of.origin_job_id, of.origin_cycle, place.times_selected)
        .add_columns(place.density, place.score)
        .join(of, of.id == place.latent_id)
        .where(place.core_id == core_id, place.core_index % stride == 0)
        .order_by(place.core_index)
    )
    points = [Point(name, at, Origin(job_id, cycle), *rest) for name, at, job_id, cycle, *rest in rows]
    if not any(point.density and point.score is not None for point in points):
        raise NothingToDraw(f"No latent of the core of cycle {index} of {job.id} was ever active.", id=job.id)
    return DensityData(_subject(job), index, n_latents, points)


def _count_by_origin(
    session: Session, core_ids: list[str]
) -> dict[str, tuple[dict[Origin, int], dict[Origin, int]]]:
    """Count the latents of each core by origin: those kept of the core before, and the others."""
    is_kept = CoreLatent.parent_core_id.is_not(None)
    keys = (CoreLatent.core_id, Latent.origin_job_id, Latent.origin_cycle, is_kept)
    rows = session.execute(
        select(*keys, func.count())
        .join(Latent, Latent.id == CoreLatent.latent_id)
        .where(CoreLatent.core_id.in_(core_ids))
        .group_by(*keys)
    )
    counts: dict[str, tuple[dict[Origin, int], dict[Origin, int]]] = defaultdict(lambda: ({}, {}))
    for core_id, job_id, cycle, was_kept, n in rows:
        counts[core_id][0 if was_kept else 1][Origin(job_id, cycle)] = n
    return counts


def _in_order(origins: Iterable[Origin], job_id: str) -> list[Origin]:
    """Put what other jobs learned first, being the older; then the job's own, by cycle."""
    return sorted(set(origins), key=lambda origin: (origin.job_id == job_id, origin))


def _subject(job: Job) -> Subject:
    return Subject(job.id, job.name)


def _without_core(job: Job, figure: str) -> NothingToDraw:
    return NothingToDraw(
        f"No cycle of the {job.kind} {job.id} has selected a core (yet): there is no {figure} to draw.",
        id=job.id,
    )


COLLECTORS: Mapping[JobFigure, Callable[[Session, Job], JobFigureData]] = {
    "origins": collect_origins,
    "flow": collect_flow,
    "curves": collect_curves,
    "density": collect_density,
}
