"""How did training go, step by step? Each cycle's points, cut down to as many as one wants to draw.

Where a cycle has more points than that, they are cut into as many runs of equal length, and each run is shown
as one: at its last step, every figure the mean of those of the run that are known.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dmsae.service.jobs import find_job
from dmsae.service.leases import POINT_VALUES
from dmsae.service.tables import Cycle, MetricPoint


class Series(NamedTuple):
    """The points of one cycle, column by column."""

    cycle_index: int
    n_recorded: int
    """Points that there are; fewer are shown where runs of them were taken together."""
    columns: dict[str, list[Any]]
    """`step` and `n_tokens`, then what was asked for."""


def list_series(
    session: Session,
    job_id: str,
    *,
    columns: Sequence[str] = POINT_VALUES,
    points: int,
    cycle_index: int | None = None,
) -> list[Series]:
    """Give the series of a job's cycles, or of one, with at most so many points in each.

    Raises:
        NotFound: there is no such job.
    """
    find_job(session, job_id)
    run = func.ntile(points).over(partition_by=Cycle.index, order_by=MetricPoint.step)
    cut = (
        select(
            Cycle.index.label("cycle_index"),
            MetricPoint.step,
            MetricPoint.n_tokens,
            *(getattr(MetricPoint, name) for name in columns),
            run.label("run"),
        )
        .join(Cycle, Cycle.id == MetricPoint.cycle_id)
        .where(Cycle.job_id == job_id, *([] if cycle_index is None else [Cycle.index == cycle_index]))
        .subquery()
    )
    shown = [func.max(cut.c.step), func.max(cut.c.n_tokens), *(func.avg(cut.c[name]) for name in columns)]
    rows = session.execute(
        select(cut.c.cycle_index, func.count(), *shown)
        .group_by(cut.c.cycle_index, cut.c.run)
        .order_by(cut.c.cycle_index, cut.c.run)
    )
    return _by_cycle(list(rows), ["step", "n_tokens", *columns])


def _by_cycle(rows: Sequence[Any], names: Sequence[str]) -> list[Series]:
    found: dict[int, Series] = {}
    for cycle_index, n_taken, *values in rows:
        before = found.get(cycle_index) or Series(cycle_index, 0, {name: [] for name in names})
        for name, value in zip(names, values, strict=True):
            before.columns[name].append(value)
        found[cycle_index] = before._replace(n_recorded=before.n_recorded + n_taken)
    return list(found.values())
