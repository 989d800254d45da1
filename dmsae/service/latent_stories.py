"""What became of one latent: where it was learned, who selected it, who carries it, and who is alike?

Who descends from it carries its encoder vector: every core of any job that holds it, given or selected. A
match is another thing: a latent that was learned elsewhere, points the same way and fires at the same tokens.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Text, case, cast, func, or_, select
from sqlalchemy.orm import Session

from dmsae.errors import Deleted, NotFound
from dmsae.service.core_tables import CoreDrop, LatentMatch
from dmsae.service.paging import Page, decode_cursor, make_page
from dmsae.service.tables import Core, CoreLatent, Cycle, Job, Latent, Owner

MOST_MATCHES = 500
"""That one story tells."""
DESCENDANTS = 50
"""Jobs that one story tells of; the others follow in pages."""


class PathJob(NamedTuple):
    """A job in whose cores a latent is or was."""

    id: str
    kind: str
    owner: str
    name: str | None
    deleted_at: Any


class Selection(NamedTuple):
    """A latent's place in a core that a cycle selected, or was given."""

    cycle_index: int
    core_id: str
    kind: str
    """Of the core."""
    published_as: str | None
    """`name@version` of the core."""
    place: CoreLatent


class Drop(NamedTuple):
    """A cycle that was given a latent and did not select it again, and how that cycle measured it."""

    cycle_index: int
    entry: CoreDrop


@dataclass
class JobPath:
    """What one job did with a latent."""

    job: PathJob
    given: Selection | None = None
    """Its place in the core that a training was given."""
    selections: list[Selection] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)


class Alike(NamedTuple):
    """A latent that a match found alike, and how it compares with chance."""

    latent: Latent
    match_job_id: str
    found: LatentMatch


@dataclass(frozen=True)
class Story:
    """All that is known of one latent."""

    latent: Latent
    own: JobPath
    """In the job that learned it."""
    descendants: Page[JobPath]
    """In the others, the oldest first."""
    matches: list[Alike]
    has_more_matches: bool


def tell_story(session: Session, public_id: str) -> Story:
    """Tell all that is known of one latent.

    Raises:
        NotFound: there is no such latent, or its job was deleted and nobody carries it.
    """
    latent = _find(session, public_id)
    own = _paths(session, latent, [latent.origin_job_id])[0]
    descendants = _descendants(session, latent, None, DESCENDANTS)
    if own.job.deleted_at is not None and not descendants.items:
        raise Deleted(f"The job of latent {public_id!r} was deleted, and nobody carries it.", id=public_id)
    matches = _matches(session, latent)
    return Story(latent, own, descendants, matches[:MOST_MATCHES], len(matches) > MOST_MATCHES)


def list_descendants(
    session: Session, public_id: str, *, cursor: str | None = None, limit: int = DESCENDANTS
) -> Page[JobPath]:
    """List the jobs beside its own whose cores carry a latent's encoder vector, the oldest first.

    Raises:
        NotFound: there is no such latent.
        BadRequest: the cursor is malformed.
    """
    return _descendants(session, _find(session, public_id), cursor, limit)


def _find(session: Session, public_id: str) -> Latent:
    latent = session.scalars(select(Latent).where(Latent.public_id == public_id)).one_or_none()
    if latent is None:
        raise NotFound(f"There is no latent {public_id!r}.", id=public_id)
    return latent


def _descendants(session: Session, latent: Latent, cursor: str | None, limit: int) -> Page[JobPath]:
    jobs = (
        select(Cycle.job_id)
        .join(Core, Cycle.id == func.coalesce(Core.cycle_id, Core.given_cycle_id))
        .join(CoreLatent, CoreLatent.core_id == Core.id)
        .join(Job, Job.id == Cycle.job_id)
        .where(CoreLatent.latent_id == latent.id, Job.id != latent.origin_job_id, Job.deleted_at.is_(None))
        .distinct()
        .order_by(Cycle.job_id)
        .limit(limit + 1)
    )
    if cursor is not None:
        jobs = jobs.where(Cycle.job_id > decode_cursor(cursor, str)[0])
    ids = list(session.scalars(jobs))
    page = make_page(ids, limit, last_key=[ids[limit - 1]] if len(ids) > limit else None)
    return Page(_paths(session, latent, page.items), page.next_cursor)


def _paths(session: Session, latent: Latent, job_ids: Sequence[str]) -> list[JobPath]:
    """Give what each job did with a latent, in the order of the jobs."""
    if not job_ids:
        return []
    about = select(Job.id, Job.kind, Owner.name, Job.name, Job.deleted_at)
    jobs = session.execute(about.join(Owner, Owner.id == Job.owner_id).where(Job.id.in_(job_ids)))
    paths = {row[0]: JobPath(PathJob(*row)) for row in jobs}
    published_as = Core.name + "@" + cast(Core.published_version, Text)
    places = (
        select(Core.given_cycle_id, Cycle.job_id, Cycle.index, Core.id, Core.kind, published_as, CoreLatent)
        .join(Core, Core.id == CoreLatent.core_id)
        .join(Cycle, Cycle.id == func.coalesce(Core.cycle_id, Core.given_cycle_id))
        .where(CoreLatent.latent_id == latent.id, Cycle.job_id.in_(job_ids))
        .order_by(Cycle.index)
    )
    for row in session.execute(places):
        path, selection = paths[row[1]], Selection._make(row[2:])
        if row[0] is not None:
            path.given = selection
        else:
            path.selections.append(selection)
    for job_id, drops in _drops(session, latent, job_ids).items():
        paths[job_id].drops = drops
    return [paths[job_id] for job_id in job_ids]


def _drops(session: Session, latent: Latent, job_ids: Sequence[str]) -> dict[str, list[Drop]]:
    drops: dict[str, list[Drop]] = defaultdict(list)
    query = select(Cycle.job_id, Cycle.index, CoreDrop).join(Cycle, Cycle.id == CoreDrop.cycle_id)
    query = query.where(CoreDrop.latent_id == latent.id, Cycle.job_id.in_(job_ids)).order_by(Cycle.index)
    for row in session.execute(query):
        drops[row[0]].append(Drop._make(row[1:]))
    return drops


def _matches(session: Session, latent: Latent) -> list[Alike]:
    """Give at most one too many, the best first; what a deleted match found is not told."""
    sides = (LatentMatch.a_latent_id, LatentMatch.b_latent_id)
    other = case((sides[0] == latent.id, sides[1]), else_=sides[0])
    query = (
        select(Latent, Job.id, LatentMatch)
        .select_from(LatentMatch)
        .join(Latent, Latent.id == other)
        .join(Cycle, Cycle.id == LatentMatch.cycle_id)
        .join(Job, Job.id == Cycle.job_id)
        .where(or_(*(side == latent.id for side in sides)), sides[0] != sides[1], Job.deleted_at.is_(None))
        .order_by(LatentMatch.decoder_cosine.desc(), Latent.id, LatentMatch.cycle_id)
        .limit(MOST_MATCHES + 1)
    )
    return [Alike(*row) for row in session.execute(query)]
