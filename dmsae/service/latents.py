"""Which latents are there, in the whole lab? By job, origin, share, selections, in a few fixed orders.

A page looks at a bounded stretch of the index that its order has, so it takes the same time among ten
thousand latents and ten million: where few of a stretch are wanted it holds fewer than its limit, even none,
and only a page without a cursor is the last.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Double,
    FromClause,
    and_,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from dmsae.errors import BadRequest, FieldProblem, InvalidConfig
from dmsae.service.core_tables import SORT_KEYS
from dmsae.service.jobs import find_job
from dmsae.service.lineage import find_core_ids
from dmsae.service.paging import Page, decode_cursor, encode_cursor
from dmsae.service.tables import CoreLatent, Job, Latent

Order = Literal["oldest", "newest", "times_selected", "last_share", "max_share"]
"""The first two by when a latent was recorded, the others by their column, the largest first."""

STRETCH = 1000
"""Entries of an index that one page looks at."""
KEY_TYPES: Mapping[str, TypeEngine[Any]] = {
    "times_selected": BigInteger(),
    "last_share": Double(),
    "max_share": Double(),
}


@dataclass(frozen=True)
class LatentFilter:
    """What a list of latents is narrowed to; None leaves it wide."""

    job_id: str | None = None
    """Held by a core of this job, be it that a training was given."""
    origin_job_id: str | None = None
    origin_cycle: int | None = None
    """Of the origin job, which must be named too."""
    origin_kind: str | None = None
    min_times_selected: int | None = None
    min_last_share: float | None = None
    min_max_share: float | None = None
    is_alive: bool | None = None
    """Whether the last finished cycle of its own job selected it."""


def list_latents(
    session: Session,
    wanted: LatentFilter,
    *,
    order: Order = "newest",
    cursor: str | None = None,
    limit: int = 100,
) -> Page[Latent]:
    """List latents, those of deleted jobs left out unless a job that held them is named.

    Those that are there from the first page to the last stand in exactly one page, whatever is added
    meanwhile, in the orders `oldest` and `newest`; in the others only while what they are sorted by stays.

    Raises:
        NotFound: there is no such job.
        InvalidConfig: a cycle is named without its job.
        BadRequest: the cursor is malformed, or of another order.
    """
    found = _look_at(session, wanted, order, _read_cursor(cursor, order), limit)
    hits = [entry for entry in found if entry[1]]
    if len(hits) > limit:
        return Page([latent for latent, *_ in hits[:limit]], _cursor(hits[limit - 1], order))
    is_cut = bool(found) and found[-1][3]
    return Page([latent for latent, *_ in hits], _cursor(found[-1], order) if is_cut else None)


def _look_at(
    session: Session, wanted: LatentFilter, order: Order, after: list[Any] | None, limit: int
) -> list[Any]:
    """Give (latent, is wanted, sort key, is the stretch's end): at most one wanted too many, and the end.

    All from one statement, so that what is added meanwhile cannot shift where the stretch ends.
    """
    source, is_bounded = _source(session, wanted)
    key = source.c.id if order not in SORT_KEYS else literal_column(SORT_KEYS[order], KEY_TYPES[order])
    columns = [source.c.id] if order not in SORT_KEYS else [key, source.c.id]
    ordered = [column.asc() if order == "oldest" else column.desc() for column in columns]
    number = func.row_number().over(order_by=ordered).label("number")
    query = select(source.c.id, key.label("key"), _is_wanted(source, wanted).label("is_wanted"), number)
    least = getattr(wanted, f"min_{order}", None)
    if least is not None:
        query = query.where(key >= literal(least, key.type))
    if after is not None:
        place, bound = tuple_(*columns), tuple_(*map(literal, after, (column.type for column in columns)))
        query = query.where(place > bound if order == "oldest" else place < bound)
    stretch = max(STRETCH, limit + 1)
    if is_bounded:
        query = query.order_by(*ordered).limit(stretch)
    seen = query.cte("seen").prefix_with("MATERIALIZED")
    is_end = seen.c.number == (stretch if is_bounded else 0)
    chosen = select(seen, is_end.label("is_end")).where(or_(seen.c.is_wanted, is_end))
    chosen_first = chosen.order_by(seen.c.number).limit(limit + 1).subquery("chosen")
    told = chosen_first.c
    rows = select(Latent, told.is_wanted, told.key, told.is_end).join(chosen_first, told.id == Latent.id)
    return list(session.execute(rows.order_by(told.number)))


def _source(session: Session, wanted: LatentFilter) -> tuple[FromClause, bool]:
    """Give the latents to look at, and whether they are so many that only a stretch of them is.

    What one cycle added, and what a training's two cores hold, is looked at as a whole.
    """
    if wanted.origin_cycle is not None and wanted.origin_job_id is None:
        rule = "needs origin_job_id: cycles are counted in each job"
        raise InvalidConfig([FieldProblem("origin_cycle", wanted.origin_cycle, rule)])
    job = None if wanted.job_id is None else find_job(session, wanted.job_id)
    query = select(Latent.__table__)
    is_held = job is not None and job.kind != "distillation"
    own = {wanted.origin_job_id, job.id if job is not None and job.kind == "distillation" else None} - {None}
    if len(own) > 1:
        return query.where(false()).cte("latents"), False
    query = query.where(*(Latent.origin_job_id == job_id for job_id in own))
    if wanted.origin_cycle is not None:
        query = query.where(Latent.origin_cycle == wanted.origin_cycle)
    if is_held and job is not None:
        core_ids = find_core_ids(session, job.id)
        held = select(CoreLatent.latent_id).where(CoreLatent.core_id.in_(core_ids))
        query = query.where(Latent.id.in_(held))
    if is_held or wanted.origin_cycle is not None:
        return query.cte("latents").prefix_with("MATERIALIZED"), False
    return query.subquery("latents"), True


def _is_wanted(source: FromClause, wanted: LatentFilter) -> ColumnElement[bool]:
    column = source.c
    conditions: list[ColumnElement[bool]] = []
    if wanted.job_id is None:
        gone = select(Job.id).where(Job.deleted_at.is_not(None), Job.purged_at.is_(None))
        conditions.append(column.origin_job_id.not_in(gone))
    if wanted.origin_kind is not None:
        conditions.append(column.origin_kind == wanted.origin_kind)
    for name in SORT_KEYS:
        least = getattr(wanted, f"min_{name}")
        if least is not None:
            conditions.append(column[name] >= literal(least, KEY_TYPES[name]))
    if wanted.is_alive is not None:
        is_alive = column.last_index.is_not(None) & column.dropped_at.is_(None)
        conditions.append(is_alive if wanted.is_alive else ~is_alive)
    return func.coalesce(and_(true(), *conditions), false(), type_=Boolean)


def _read_cursor(cursor: str | None, order: Order) -> list[Any] | None:
    if cursor is None:
        return None
    types = (KEY_TYPES[order].python_type,) if order in SORT_KEYS else ()
    name, *key = decode_cursor(cursor, str, *types, int)
    if name != order or any(isinstance(value, float) and math.isnan(value) for value in key):
        rule = f"it is no `next_cursor` of the order {order!r}"
        raise BadRequest(f"The cursor is malformed: {rule}.", param="cursor", value=cursor[:100])
    return key


def _cursor(entry: Any, order: Order) -> str:
    key = [entry[2]] if order in SORT_KEYS else []
    return encode_cursor([order, *key, entry[0].id])
