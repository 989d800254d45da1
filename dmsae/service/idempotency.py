"""Was this POST already done? Keys under which a client repeats one without doing it twice.

The row of a key is written in the transaction of what the POST does: both are there, or neither. Of many that
come at once one writes it, and the others wait until it has.
"""

from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from dmsae.errors import IdempotencyKeyReused
from dmsae.service.idempotency_tables import IdempotencyKey

KEPT = timedelta(hours=24)
SCOPE = (IdempotencyKey.owner_id, IdempotencyKey.method, IdempotencyKey.route, IdempotencyKey.key)


@dataclass(frozen=True)
class Asked:
    """A POST under a key: who asks for what."""

    owner_id: str
    method: str
    route: str
    key: str
    body_hash: str


@dataclass(frozen=True)
class StoredAnswer:
    """What a POST was answered, and is answered again."""

    status: int
    location: str | None
    answer: dict[str, Any]


def find_answer(session: Session, asked: Asked) -> StoredAnswer | None:
    """Give what this POST was answered within the last day; None if it was not done.

    Raises:
        IdempotencyKeyReused: the same key came with another body.
    """
    columns = (IdempotencyKey.body_hash, IdempotencyKey.status, IdempotencyKey.location)
    query = select(*columns, IdempotencyKey.answer).where(_is(asked), ~_is_old())
    found = session.execute(query).one_or_none()
    if found is None:
        return None
    if found.body_hash != asked.body_hash:
        raise IdempotencyKeyReused(
            f"The Idempotency-Key {asked.key!r} came with another body or query before: take another key.",
            param="Idempotency-Key",
        )
    return StoredAnswer(found.status, found.location, found.answer)


def begin(session: Session, asked: Asked) -> StoredAnswer | None:
    """Take a key for what this transaction does; give the answer of another one that had it first.

    Waits while another transaction has it.

    Raises:
        IdempotencyKeyReused: the same key came with another body.
    """
    taken = insert(IdempotencyKey).values(**asdict(asked))
    anew = {"body_hash": asked.body_hash, "status": None, "location": None, "answer": None}
    upsert = taken.on_conflict_do_update(
        index_elements=list(SCOPE), set_={**anew, "created_at": func.now()}, where=_is_old()
    )
    if session.scalar(upsert.returning(IdempotencyKey.key)) is not None:
        return None
    return find_answer(session, asked)


def finish(session: Session, asked: Asked, stored: StoredAnswer) -> None:
    """Note what the POST of this transaction is answered."""
    session.execute(
        update(IdempotencyKey)
        .where(_is(asked))
        .values(**asdict(stored))
        .execution_options(synchronize_session=False)
    )


def forget_old(session: Session, *, limit: int) -> int:
    """Remove keys older than a day; give how many."""
    old = select(*SCOPE).where(_is_old()).order_by(IdempotencyKey.created_at).limit(limit)
    removed = session.scalars(
        delete(IdempotencyKey)
        .where(tuple_(*SCOPE).in_(old))
        .returning(IdempotencyKey.key)
        .execution_options(synchronize_session=False)
    )
    return len(removed.all())


def _is(asked: Asked) -> ColumnElement[bool]:
    return and_(*(column == getattr(asked, column.key) for column in SCOPE))


def _is_old() -> ColumnElement[bool]:
    return IdempotencyKey.created_at < func.now() - KEPT
