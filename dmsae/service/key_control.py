"""Which keys may a caller see, make and end? Owners their own, administrators everybody's."""

from datetime import timedelta

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from dmsae.errors import Forbidden, NotFound, QuotaExceeded
from dmsae.service import keys
from dmsae.service.control_requests import KeyRequest
from dmsae.service.keys import Caller, KeyView
from dmsae.service.paging import Page, decode_cursor, make_page
from dmsae.service.tables import ROLES, ApiKey, Owner

MOST_VALID_KEYS = 100
"""Of one owner, made by themselves."""

IS_VALID = (ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()))


def make_key(session: Session, caller: Caller, request: KeyRequest) -> tuple[KeyView, str]:
    """Make a key as a caller wants it, and give its plain text, which is stored nowhere.

    Raises:
        Forbidden: the service is open, the owner is another one, or the role is above the caller's.
        QuotaExceeded: the owner has as many valid keys as one may make.
    """
    if caller.is_open:
        raise Forbidden(
            "The first key is made where the service runs: `dmsae keys create OWNER --role admin`."
        )
    owner_name = request.owner or caller.name
    if owner_name != caller.name and not caller.is_admin:
        raise Forbidden("Only administrators make keys for other owners.", param="owner")
    if _rank(request.role) > _rank(caller.role):
        raise Forbidden(
            f"With a key of role {caller.role} none of role {request.role} is made.", param="role"
        )
    if not caller.is_admin:
        _require_room(session, caller.owner_id)
    days = request.expires_in_days
    expires_at = None if days is None else session.scalars(select(func.now())).one() + timedelta(days=days)
    key, plaintext = keys.create_key(
        session, owner_name, name=request.name, role=request.role, expires_at=expires_at
    )
    return KeyView(key, owner_name, "valid"), plaintext


def list_keys(
    session: Session, caller: Caller, *, owner: str | None = None, cursor: str | None = None, limit: int = 50
) -> Page[KeyView]:
    """List the keys that a caller may see, the newest first.

    Raises:
        BadRequest: the cursor is malformed.
    """
    query = keys.select_keys()
    if caller.changes_of is not None:
        query = query.where(ApiKey.owner_id == caller.changes_of)
    if owner is not None:
        query = query.where(Owner.name == owner)
    if cursor is not None:
        query = query.where(ApiKey.id < decode_cursor(cursor, str)[0])
    rows = session.execute(query.limit(limit + 1))
    views = [KeyView(*row) for row in rows]
    return make_page(views, limit, last_key=[views[limit - 1].key.id] if len(views) > limit else None)


def end_key(session: Session, caller: Caller, key_id: str) -> None:
    """Revoke a key that a caller may see; again is no error.

    Raises:
        NotFound: there is no such key, or it is another owner's.
        Forbidden: it may do more than the caller.
    """
    key = session.get(ApiKey, key_id)
    if key is None or caller.changes_of not in (None, key.owner_id):
        raise NotFound(f"There is no key {key_id!r}.", id=key_id)
    if _rank(key.role) > _rank(caller.role):
        raise Forbidden(f"With a key of role {caller.role} none of role {key.role} is revoked.", id=key_id)
    keys.revoke_key(session, key_id)


def _require_room(session: Session, owner_id: str) -> None:
    """Refuse a further key beyond what an owner may have; its row stays locked."""
    session.execute(select(Owner.id).where(Owner.id == owner_id).with_for_update(key_share=True))
    valid = select(func.count()).select_from(ApiKey).where(ApiKey.owner_id == owner_id, *IS_VALID)
    if session.scalars(valid).one() >= MOST_VALID_KEYS:
        raise QuotaExceeded(f"This owner has {MOST_VALID_KEYS} valid keys: revoke some first.")


def _rank(role: str) -> int:
    return ROLES.index(role)
