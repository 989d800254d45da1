"""Who is asking? Owners, and the bearer keys that prove one.

A key is long and random, so its plain SHA-256 is stored and looked up; the key itself is shown once. While no
key was ever made the service is open (on loopback: `api/security.py`) and everyone is the owner `local`.
"""

import hashlib
import re
import secrets
from datetime import datetime

from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from dmsae.errors import FieldProblem, InvalidConfig, NotFound, Unauthorized
from dmsae.service.ids import new_id
from dmsae.service.tables import ApiKey, Owner

OPEN_OWNER = "local"
"""Everyone, while no key is required."""

OWNER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LONGEST_KEY_NAME = 200


def ensure_owner(session: Session, name: str) -> Owner:
    """Give the owner of this name, made now if there is none.

    Raises:
        InvalidConfig: the name has other characters than letters, digits, `.`, `_` and `-`, or too many.
    """
    if not OWNER_NAME.fullmatch(name):
        rule = "must be 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter or digit"
        raise InvalidConfig([FieldProblem("owner", name, rule)])
    owner = session.scalar(select(Owner).where(Owner.name == name))
    if owner is None:
        session.execute(
            insert(Owner)
            .values(id=new_id("owner"), name=name)
            .on_conflict_do_nothing(index_elements=["name"])
        )
        owner = session.scalars(select(Owner).where(Owner.name == name)).one()
    return owner


def create_key(
    session: Session, owner_name: str, *, name: str = "", expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """Make a key of an owner and return it with its plain text, which is stored nowhere.

    Raises:
        InvalidConfig: the owner's or the key's name is not allowed, or the expiry has no time zone.
    """
    if len(name) > LONGEST_KEY_NAME or "\0" in name:
        raise InvalidConfig(
            [FieldProblem("name", name[:50], f"at most {LONGEST_KEY_NAME} characters, no NUL")]
        )
    if expires_at is not None and expires_at.tzinfo is None:
        raise InvalidConfig([FieldProblem("expires_at", expires_at.isoformat(), "must have a time zone")])
    owner = ensure_owner(session, owner_name)
    plaintext = f"dmsae_{secrets.token_urlsafe(32)}"
    key = ApiKey(
        id=new_id("key"),
        owner_id=owner.id,
        key_hash=_hash(plaintext),
        name=name,
        expires_at=expires_at,
        revoked_at=None,
    )
    session.add(key)
    session.flush()
    return key, plaintext


def list_keys(session: Session) -> list[tuple[ApiKey, str]]:
    """List every key with its owner's name, the newest first."""
    rows = session.execute(
        select(ApiKey, Owner.name)
        .join(Owner, Owner.id == ApiKey.owner_id)
        .order_by(ApiKey.created_at.desc(), ApiKey.id)
    )
    return [(key, owner_name) for key, owner_name in rows]


def revoke_key(session: Session, key_id: str) -> None:
    """End a key's validity now; revoking it again changes nothing.

    Raises:
        NotFound: there is no such key.
    """
    found = session.scalar(
        update(ApiKey)
        .where(ApiKey.id == key_id)
        .values(revoked_at=func.coalesce(ApiKey.revoked_at, func.now()))
        .returning(ApiKey.id)
    )
    if found is None:
        raise NotFound(f"There is no key {key_id!r}.", id=key_id)


def has_keys(session: Session) -> bool:
    """Tell whether any key was ever made: losing the last valid one must not open the service."""
    return session.scalar(select(ApiKey.id).limit(1)) is not None


def owner_of_key(session: Session, plaintext: str) -> Owner | None:
    """Give the owner whom a valid key proves; None for an unknown, expired or revoked one."""
    return session.scalar(
        select(Owner)
        .join(ApiKey, ApiKey.owner_id == Owner.id)
        .where(
            ApiKey.key_hash == _hash(plaintext),
            ApiKey.revoked_at.is_(None),
            or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()),
        )
    )


def identify(session: Session, plaintext: str | None, *, is_key_required: bool) -> tuple[Owner, bool]:
    """Give who is asking, and whether the service is open, that is, whether no key proved it.

    Raises:
        Unauthorized: the key is not valid, or there is none and one is required.
    """
    if plaintext is not None:
        owner = owner_of_key(session, plaintext)
        if owner is None:
            raise Unauthorized("This API key is not valid: unknown, expired or revoked.")
        return owner, False
    if is_key_required or has_keys(session):
        raise Unauthorized()
    return ensure_owner(session, OPEN_OWNER), True


def _hash(plaintext: str) -> str:
    return hashlib.sha256(plaintext.encode("utf-8", "surrogatepass")).hexdigest()
