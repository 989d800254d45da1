"""Where does a group of jobs stand, what did it find, and how does it end early?

A group is no row of its own: it is the jobs that share its id.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from dmsae.errors import Forbidden, NotFound
from dmsae.service import cancelling
from dmsae.service.progress import JobView, view_jobs
from dmsae.service.tables import FINAL_JOB_STATES, Cycle, Job

FIGURES = (
    *("l0", "explained_variance", "ce_increase", "lr_kept", "dead_fraction"),
    *("n_core", "n_new", "n_dropped", "retention"),
)
"""Metrics by which the jobs of a group are compared."""


@dataclass(frozen=True)
class GroupView:
    """A group as it is shown."""

    group_id: str
    state: str
    """queued, running, cancelling, succeeded, failed or cancelled: made from its jobs' states."""
    jobs: list[JobView]
    """Those that are not deleted, in the order of the request, the match last."""
    match: dict[str, Any] | None
    """What the match of its chains found."""
    figures: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Of each job with a finished cycle: which one was the last, and its `FIGURES`."""


def view_group(session: Session, group_id: str) -> GroupView:
    """Show a group with its jobs.

    Raises:
        NotFound: there is no such group, or all of its jobs were deleted.
    """
    jobs = _members(session, group_id)
    view = make_group(group_id, view_jobs(session, jobs))
    return replace(view, match=_find_match(session, jobs), figures=_find_figures(session, jobs))


def make_group(group_id: str, jobs: list[JobView]) -> GroupView:
    """Give the view of a group whose jobs have only been submitted."""
    return GroupView(group_id, _state([view.job.state for view in jobs]), jobs, None)


def cancel_group(session: Session, group_id: str, *, owner_id: str | None) -> GroupView:
    """Cancel all jobs of an owner's group (None: anybody's); those that have ended stay as they are.

    Raises:
        NotFound: there is no such group, or all of its jobs were deleted.
        Forbidden: it belongs to another owner.
    """
    cancelled: set[str] = set()
    # a match may be queued by the last chain while its job is waited for: look again until nothing is new
    while new := sorted({job.id for job in _members(session, group_id, owner_id=owner_id)} - cancelled):
        for job_id in new:
            cancelling.cancel_job(session, job_id)
        cancelled.update(new)
    return view_group(session, group_id)


def _members(session: Session, group_id: str, *, owner_id: str | None = None) -> list[Job]:
    query = select(Job).where(Job.group_id == group_id, Job.deleted_at.is_(None))
    found = session.scalars(query.order_by(Job.created_at, Job.id).execution_options(populate_existing=True))
    jobs = list(found)
    if not jobs:
        raise NotFound(f"There is no group {group_id!r}.", id=group_id)
    if any(owner_id not in (None, job.owner_id) for job in jobs):
        rule = "belongs to another owner; only its owner may change it"
        raise Forbidden(f"Group {group_id!r} {rule}.", id=group_id)
    return jobs


def _state(states: list[str]) -> str:
    unfinished = [state for state in states if state not in FINAL_JOB_STATES]
    if not unfinished:
        return next((state for state in ("failed", "cancelled") if state in states), "succeeded")
    if set(states) == {"queued"}:
        return "queued"
    return "cancelling" if set(unfinished) == {"cancelling"} else "running"


def _find_match(session: Session, jobs: list[Job]) -> dict[str, Any] | None:
    match = next((job for job in jobs if job.kind == "probe"), None)
    if match is None:
        return None
    query = select(Cycle.metrics).where(Cycle.job_id == match.id, Cycle.state == "succeeded")
    metrics = session.scalars(query).one_or_none()
    return None if metrics is None else {"job_id": match.id, **metrics["match"]}


def _find_figures(session: Session, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """Give of each job the figures of its last finished cycle."""
    query = (
        select(Cycle.job_id, Cycle.index.label("cycle_index"), *(Cycle.metrics[name] for name in FIGURES))
        .where(Cycle.job_id.in_([job.id for job in jobs]), Cycle.state == "succeeded", Cycle.selects_core)
        .order_by(Cycle.job_id, Cycle.index)
    )
    return {
        job_id: {"cycle_index": index, **dict(zip(FIGURES, values, strict=True))}
        for job_id, index, *values in session.execute(query)
    }
