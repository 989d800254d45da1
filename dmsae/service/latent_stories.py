"""What became of one latent: where it was learned, who selected it, who carries it, and who is alike?

Who descends from it carries its encoder vector: every core of any job that holds it, given or selected. A
match is another thing: a latent that was learned elsewhere and points the same way. That it fires at the same
tokens too, a match of chains requires, and a probe tells.

Three statements tell a story, each along indexes. They are built once and ask for plain columns: to build
them and to make entities of what is only shown would take longer than all that Postgres does.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    BindParameter,
    CompoundSelect,
    Select,
    Text,
    bindparam,
    case,
    cast,
    func,
    literal,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy.orm import Session

from dmsae.errors import Deleted, NotFound
from dmsae.service.core_tables import CoreDrop, LatentMatch
from dmsae.service.paging import Page, decode_cursor, make_page
from dmsae.service.tables import Core, CoreLatent, Cycle, Job, Latent, Owner

MOST_MATCHES = 500
"""That one story tells."""
DESCENDANTS = 50
"""Jobs that one story tells of; the others follow in pages."""


JOB = (
    Job.id.label("job_id"),
    Job.kind,
    Owner.name.label("owner"),
    Job.name,
    Job.deleted_at,
)
"""Columns of a `PathJob`."""


class PathJob(NamedTuple):
    """A job in whose cores a latent is or was."""

    job_id: str
    kind: str
    owner: str
    name: str | None
    deleted_at: datetime | None


class Selection(NamedTuple):
    """A latent's place in a core that a cycle selected, or was given."""

    cycle_index: int
    core_id: str
    core_kind: str
    published_as: str | None
    """`name@version` of the core."""
    core_index: int
    sae_index: int | None
    parent_core_index: int | None
    times_selected: int | None
    score: float | None
    score_se: float | None
    share: float | None
    rank: int | None
    encoder_norm: float | None
    density: float | None
    decoder_cosine: float | None
    firing_jaccard: float | None
    is_borderline: bool | None


MEASURED = Selection._fields[4:]
"""Columns of `core_latents`."""


class Drop(NamedTuple):
    """A cycle that was given a latent and did not select it again, and how that cycle measured it."""

    cycle_index: int
    score: float | None
    share: float | None
    rank: int | None


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

    latent_id: str
    origin_job_id: str
    origin_cycle: int
    origin_index: int
    origin_kind: str
    match_job_id: str
    decoder_cosine: float
    firing_correlation: float | None
    best_cosine: float | None
    best_cosine_random: float | None


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
    latent, own_job = _find(session, public_id)
    asked = {"own_job_id": latent.origin_job_id, "after": "", "n_jobs": DESCENDANTS + 2}
    own, *others = _paths(session, latent, asked, first=[own_job])
    descendants = _page(others, DESCENDANTS)
    if own.job.deleted_at is not None and not descendants.items:
        raise Deleted(f"The job of latent {public_id!r} was deleted, and nobody carries it.", id=public_id)
    matches = [Alike(*row) for row in session.execute(_matches(), {"latent_id": latent.id})]
    return Story(latent, own, descendants, matches[:MOST_MATCHES], len(matches) > MOST_MATCHES)


def list_descendants(
    session: Session, public_id: str, *, cursor: str | None = None, limit: int = DESCENDANTS
) -> Page[JobPath]:
    """List the jobs beside its own whose cores carry a latent's encoder vector, the oldest first.

    Raises:
        NotFound: there is no such latent.
        BadRequest: the cursor is malformed.
    """
    latent, _ = _find(session, public_id)
    after = "" if cursor is None else decode_cursor(cursor, str)[0]
    asked = {"own_job_id": None, "after": after, "n_jobs": limit + 1}
    return _page(_paths(session, latent, asked), limit)


def _page(paths: list[JobPath], limit: int) -> Page[JobPath]:
    return make_page(paths, limit, last_key=[paths[limit - 1].job.job_id] if len(paths) > limit else None)


def _find(session: Session, public_id: str) -> tuple[Latent, PathJob]:
    """Give a latent, and the job that learned it."""
    row = session.execute(_latent_with_job(), {"public_id": public_id}).one_or_none()
    if row is None:
        raise NotFound(f"There is no latent {public_id!r}.", id=public_id)
    return row[0], PathJob(*row[1:])


@cache
def _latent_with_job() -> Select[Any]:
    columns: list[Any] = [Latent, *JOB]
    query = select(*columns).where(Latent.public_id == bindparam("public_id"))
    return query.join(Job, Job.id == Latent.origin_job_id).join(Owner, Owner.id == Job.owner_id)


def _paths(
    session: Session, latent: Latent, asked: Mapping[str, Any], *, first: Iterable[PathJob] = ()
) -> list[JobPath]:
    """Give what the first jobs `asked` for did with a latent: its own, if asked for, then the oldest first.

    `first` stands in the list whether or not any of its cores holds the latent.
    """
    about = {"latent_id": latent.id, "origin_job_id": latent.origin_job_id}
    paths = {job.job_id: JobPath(job) for job in first}
    for row in session.execute(_entries(), {**about, **asked}):
        kind, job, entry = row[0], PathJob(*row[1:6]), row[6:-1]
        path = paths.setdefault(job.job_id, JobPath(job))
        if kind == "drop":
            path.drops.append(Drop(*(getattr(row, name) for name in Drop._fields)))
        elif kind == "given":
            path.given = Selection(*entry)
        else:
            path.selections.append(Selection(*entry))
    return list(paths.values())


@cache
def _entries() -> CompoundSelect[Any]:
    """Ask for places and drops alike: what it is, whose job, and an entry as long as a `Selection`.

    Of `n_jobs` in all: `own_job_id`, then those behind `after` that are neither the origin's nor deleted.
    """
    is_other = Job.id != bindparam("origin_job_id")
    is_asked = (Job.id == bindparam("own_job_id", type_=Text)) | (
        is_other & Job.deleted_at.is_(None) & (Job.id > bindparam("after"))
    )
    number = func.dense_rank().over(order_by=(is_other, Job.id))
    kind = case((Core.given_cycle_id.is_not(None), "given"), else_="selected")
    published_as = (Core.name + "@" + cast(Core.published_version, Text)).label("published_as")
    core = (Core.id.label("core_id"), Core.kind.label("core_kind"), published_as)
    place = (getattr(CoreLatent, name) for name in MEASURED)
    columns: list[Any] = [kind.label("entry"), *JOB, Cycle.index.label("cycle_index"), *core, *place]
    numbered = (
        select(*columns, number.label("number"))
        .select_from(CoreLatent)
        .join(Core, Core.id == CoreLatent.core_id)
        .join(Cycle, Cycle.id == func.coalesce(Core.cycle_id, Core.given_cycle_id))
        .join(Job, Job.id == Cycle.job_id)
        .join(Owner, Owner.id == Job.owner_id)
        .where(CoreLatent.latent_id == bindparam("latent_id"), is_asked)
        .subquery("numbered")
    )
    places = select(numbered).where(numbered.c.number <= bindparam("n_jobs")).cte("places")
    return union_all(select(places), _drops(places)).order_by("number", "cycle_index")


def _drops(places: CTE) -> Select[Any]:
    """Ask which cycles of the jobs in `places` did not select a latent again."""
    jobs = select(*(places.c[name] for name in (*PathJob._fields, "number"))).distinct().subquery("jobs")
    job = (jobs.c[name] for name in PathJob._fields)
    entry = (getattr(CoreDrop, name) if name in Drop._fields else null() for name in Selection._fields[1:])
    columns: list[Any] = [literal("drop"), *job, Cycle.index, *entry, jobs.c.number]
    dropped = select(*columns).select_from(CoreDrop).join(Cycle, Cycle.id == CoreDrop.cycle_id)
    return dropped.join(jobs, jobs.c.job_id == Cycle.job_id).where(
        CoreDrop.latent_id == bindparam("latent_id")
    )


@cache
def _matches() -> Select[Any]:
    """Ask for one too many, the best first; what a deleted match found is not told."""
    latent_id: BindParameter[int] = bindparam("latent_id")
    sides = (LatentMatch.a_latent_id, LatentMatch.b_latent_id)
    other = case((sides[0] == latent_id, sides[1]), else_=sides[0])
    columns: list[Any] = [Latent.public_id, *(getattr(Latent, name) for name in Alike._fields[1:5]), Job.id]
    columns += [getattr(LatentMatch, name) for name in Alike._fields[6:]]
    return (
        select(*columns)
        .select_from(LatentMatch)
        .join(Latent, Latent.id == other)
        .join(Cycle, Cycle.id == LatentMatch.cycle_id)
        .join(Job, Job.id == Cycle.job_id)
        .where(or_(*(side == latent_id for side in sides)), sides[0] != sides[1], Job.deleted_at.is_(None))
        .order_by(LatentMatch.decoder_cosine.desc(), Latent.id, LatentMatch.cycle_id)
        .limit(MOST_MATCHES + 1)
    )
