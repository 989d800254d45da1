"""Which cycle did this latent come from, and what became of it?"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import bindparam, select, true, union_all
from sqlalchemy.orm import Session

from dmsae.errors import NotFound
from dmsae.service.jobs import find_job
from dmsae.service.paging import Page, decode_cursor, make_page
from dmsae.service.tables import Core, CoreLatent, Cycle, CycleOrigin, Latent

_OF_CYCLE = (
    select(CycleOrigin.origin_job_id, CycleOrigin.origin_cycle, CycleOrigin.n_latents)
    .where(CycleOrigin.cycle_id == Cycle.id)
    .offset(0)
    .lateral()
)
COUNTED = (
    select(Cycle.index, *_OF_CYCLE.c)
    .outerjoin(_OF_CYCLE, true())
    .where(Cycle.job_id == bindparam("job_id"), Cycle.state == "succeeded")
)
"""Each cycle's origins. By the offset those of each cycle are a question of its own: else all may be read."""


@dataclass(frozen=True)
class CoreFilter:
    """Which core, and which part of it."""

    cycle_index: int | None = None
    """None: of the last cycle that selected one."""
    min_selected: int = 1
    """Only latents that were selected in at least so many unbroken cycles."""


@dataclass(frozen=True)
class CoreMember:
    """A latent in one core: who it is, and its place there."""

    latent: Latent
    place: CoreLatent


@dataclass(frozen=True)
class CoreView:
    """The core that one cycle selected, or the part of it that was selected often enough."""

    core_id: str
    cycle_index: int
    n_latents: int
    """Of the whole core."""
    min_selected: int
    members: Page[CoreMember]


class Place(NamedTuple):
    """A latent's place in the core of one cycle."""

    cycle_index: int
    entry: CoreLatent


@dataclass(frozen=True)
class LatentPath:
    """A latent, and its place in each cycle of a job that selected it, in order."""

    latent: Latent
    places: list[Place]
    given: CoreLatent | None
    """Its place in the core that a training was given."""


@dataclass(frozen=True)
class Origins:
    """How many latents of each cycle's core (row) come from which origin (column)."""

    cycles: list[int]
    origins: list[tuple[str, int]]
    """Origin job and cycle of each column; the job itself first."""
    matrix: list[list[int]]


def find_given(session: Session, job_id: str) -> Core | None:
    """Give the core that a training was given; None where it was given none, or has not finished."""
    query = select(Core).join(Cycle, Cycle.id == Core.given_cycle_id).where(Cycle.job_id == job_id)
    return session.scalars(query).one_or_none()


def find_core_ids(session: Session, job_id: str) -> list[str]:
    """Give the ids of all cores that cycles of a job selected or were given."""
    selected, given = (
        select(Core.id).join(Cycle, Cycle.id == cycle_id).where(Cycle.job_id == job_id)
        for cycle_id in (Core.cycle_id, Core.given_cycle_id)
    )
    return list(session.scalars(union_all(selected, given)))


def view_core(
    session: Session,
    job_id: str,
    wanted: CoreFilter | None = None,
    *,
    cursor: str | None = None,
    limit: int = 1000,
) -> CoreView:
    """Show the core of a cycle, by default of the last one that has one, in the order of its latents.

    Raises:
        NotFound: there is no such job, or that cycle has no core (yet).
        BadRequest: the cursor is malformed.
    """
    wanted = wanted or CoreFilter()
    index, core = _find_core(session, job_id, wanted.cycle_index)
    query = (
        select(Latent, CoreLatent)
        .join(CoreLatent, CoreLatent.latent_id == Latent.id)
        .where(CoreLatent.core_id == core.id, CoreLatent.times_selected >= wanted.min_selected)
        .order_by(CoreLatent.core_index)
        .limit(limit + 1)
    )
    if cursor is not None:
        query = query.where(CoreLatent.core_index > decode_cursor(cursor, int)[0])
    members = [CoreMember(*row) for row in session.execute(query)]
    last_key = [members[limit - 1].place.core_index] if len(members) > limit else None
    page = make_page(members, limit, last_key=last_key)
    return CoreView(core.id, index, core.n_latents, wanted.min_selected, page)


def list_lineage(
    session: Session, job_id: str, *, cursor: str | None = None, limit: int = 200
) -> Page[LatentPath]:
    """List every latent that any core of a job held, each with its whole path there, the oldest first.

    Raises:
        NotFound: there is no such job.
        BadRequest: the cursor is malformed.
    """
    find_job(session, job_id)
    held = select(CoreLatent.latent_id).where(CoreLatent.core_id.in_(find_core_ids(session, job_id)))
    query = select(Latent).where(Latent.id.in_(held)).order_by(Latent.id).limit(limit + 1)
    if cursor is not None:
        query = query.where(Latent.id > decode_cursor(cursor, int)[0])
    latents = list(session.scalars(query))
    last_key = [latents[limit - 1].id] if len(latents) > limit else None
    page = make_page(latents, limit, last_key=last_key)
    ids = [latent.id for latent in page.items]
    places, given = _places(session, job_id, ids), _given_places(session, job_id, ids)
    paths = [LatentPath(latent, places[latent.id], given.get(latent.id)) for latent in page.items]
    return Page(paths, page.next_cursor)


def view_origins(session: Session, job_id: str) -> Origins:
    """Count each cycle's core latents by the cycle that they come from.

    Raises:
        NotFound: there is no such job.
    """
    find_job(session, job_id)
    found = session.execute(COUNTED, {"job_id": job_id}).all()
    cycles = sorted({row[0] for row in found})
    counts = {(index, (origin_job, origin)): n for index, origin_job, origin, n in found if n is not None}
    foreign = sorted({origin for _, origin in counts if origin[0] != job_id})
    origins = [(job_id, index) for index in cycles] + foreign
    matrix = [[counts.get((index, origin), 0) for origin in origins] for index in cycles]
    return Origins(cycles, origins, matrix)


def _find_core(session: Session, job_id: str, cycle_index: int | None) -> tuple[int, Core]:
    find_job(session, job_id)
    query = (
        select(Cycle.index, Core).join(Core, Core.id == Cycle.output_core_id).where(Cycle.job_id == job_id)
    )
    if cycle_index is not None:
        query = query.where(Cycle.index == cycle_index)
    row = session.execute(query.order_by(Cycle.index.desc()).limit(1)).one_or_none()
    if row is None:
        which = "no cycle" if cycle_index is None else f"cycle {cycle_index} does not exist or"
        raise NotFound(f"{which.capitalize()} has selected a core (yet).", id=job_id)
    return row[0], row[1]


def _given_places(session: Session, job_id: str, latent_ids: Sequence[int]) -> dict[int, CoreLatent]:
    query = (
        select(CoreLatent)
        .join(Core, Core.id == CoreLatent.core_id)
        .join(Cycle, Cycle.id == Core.given_cycle_id)
        .where(Cycle.job_id == job_id, CoreLatent.latent_id.in_(latent_ids))
    )
    return {place.latent_id: place for place in session.scalars(query)}


def _places(session: Session, job_id: str, latent_ids: Sequence[int]) -> dict[int, list[Place]]:
    places: dict[int, list[Place]] = defaultdict(list)
    for row in session.execute(
        select(Cycle.index, CoreLatent)
        .join(Core, Core.cycle_id == Cycle.id)
        .join(CoreLatent, CoreLatent.core_id == Core.id)
        .where(Cycle.job_id == job_id, CoreLatent.latent_id.in_(latent_ids))
        .order_by(Cycle.index)
    ):
        place = Place(*row)
        places[place.entry.latent_id].append(place)
    return places
