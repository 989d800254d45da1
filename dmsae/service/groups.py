"""Where does a group of jobs stand, and what did the match of its chains find?

A group is no row of its own: it is the jobs that share its id.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from dmsae.errors import NotFound
from dmsae.service.progress import JobView, view_jobs
from dmsae.service.tables import FINAL_JOB_STATES, Cycle, Job


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


def view_group(session: Session, group_id: str) -> GroupView:
    """Show a group with its jobs.

    Raises:
        NotFound: there is no such group, or all of its jobs were deleted.
    """
    query = select(Job).where(Job.group_id == group_id, Job.deleted_at.is_(None))
    jobs = list(session.scalars(query.order_by(Job.created_at, Job.id)))
    if not jobs:
        raise NotFound(f"There is no group {group_id!r}.", id=group_id)
    return make_group(group_id, view_jobs(session, jobs), match=_find_match(session, jobs))


def make_group(group_id: str, jobs: list[JobView], *, match: dict[str, Any] | None = None) -> GroupView:
    """Give the view of a group whose jobs are known."""
    return GroupView(group_id, _state([view.job.state for view in jobs]), jobs, match)


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
