"""Who is asking? Owners, and the bearer keys that prove one.

A key is long and random, so its plain SHA-256 is stored and looked up; the key itself is shown once. While no
key was ever made the service is open (on loopback: `api/security.py`) and everyone is the owner `local`.
What may be made and ended with a key is decided in `key_control.py`.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Select, Text, bindparam, case, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from dmsae.errors import FieldProblem, InvalidConfig, KeyExpired, KeyRevoked, NotFound, Unauthorized
from dmsae.service.ids import new_id
from dmsae.service.prepared import Prepared
from dmsae.service.tables import ROLES, ApiKey, Owner

OPEN_OWNER = "local"
"""Everyone, while no key is required."""

OWNER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LONGEST_KEY_NAME = 200
PREFIX_LENGTH = 12
"""Of the 49 characters of a key; what is left has more than 200 random bits."""
USE_NOTED_EVERY = timedelta(minutes=1)


class _Open(NamedTuple):
    """Whether anybody needs a key, and who everyone is without one."""

    has_keys: bool
    owner_id: str | None


class _Proof(NamedTuple):
    """What is known of a key."""

    id: str
    key_hash: str
    role: str
    owner_id: str
    name: str
    is_revoked: bool
    is_expired: bool
    is_to_note: bool


OPEN = Prepared(
    select(select(ApiKey.id).exists(), select(Owner.id).where(Owner.name == OPEN_OWNER).scalar_subquery()),
    _Open._make,
)
PROOF = Prepared(
    select(
        ApiKey.id,
        ApiKey.key_hash,
        ApiKey.role,
        ApiKey.owner_id,
        Owner.name,
        ApiKey.revoked_at.is_not(None),
        func.coalesce(ApiKey.expires_at <= func.now(), False),
        func.coalesce(ApiKey.last_used_at < func.now() - USE_NOTED_EVERY, True),
    )
    .join(Owner, Owner.id == ApiKey.owner_id)
    .where(ApiKey.key_hash == bindparam("key_hash", "", Text)),
    _Proof._make,
)


@dataclass(frozen=True)
class Caller:
    """Who is asking: an owner, and what the key in hand allows."""

    owner_id: str
    name: str
    role: str
    key_id: str | None
    """None while the service is open: no key proved it."""

    @property
    def is_open(self) -> bool:
        """Whether the service is open, so that whoever reaches it may do everything."""
        return self.key_id is None

    @property
    def is_admin(self) -> bool:
        """Whether everybody's jobs, keys and limits may be changed."""
        return self.role == "admin"

    @property
    def changes_of(self) -> str | None:
        """Give the owner whose things may be changed: the caller's own; None: everybody's."""
        return None if self.is_admin else self.owner_id


class KeyView(NamedTuple):
    """A key without what it is: only its holder has that."""

    key: ApiKey
    owner: str
    state: str
    """valid, expired or revoked."""


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
    session: Session,
    owner_name: str,
    *,
    name: str = "",
    role: str = "submitter",
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Make a key of an owner and return it with its plain text, which is stored nowhere.

    Raises:
        InvalidConfig: the owner's or the key's name is not allowed, there is no such role, or the expiry
            has no time zone.
    """
    if len(name) > LONGEST_KEY_NAME or "\0" in name:
        raise InvalidConfig(
            [FieldProblem("name", name[:50], f"at most {LONGEST_KEY_NAME} characters, no NUL")]
        )
    if role not in ROLES:
        raise InvalidConfig([FieldProblem("role", role[:50], f"must be one of {', '.join(ROLES)}")])
    if expires_at is not None and expires_at.tzinfo is None:
        raise InvalidConfig([FieldProblem("expires_at", expires_at.isoformat(), "must have a time zone")])
    owner = ensure_owner(session, owner_name)
    plaintext = f"dmsae_{secrets.token_urlsafe(32)}"
    key = ApiKey(
        id=new_id("key"),
        owner_id=owner.id,
        key_hash=_hash(plaintext),
        prefix=plaintext[:PREFIX_LENGTH],
        role=role,
        name=name,
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, plaintext


def select_keys() -> Select[ApiKey, str, str]:
    """Give the query for keys, each with its owner's name and its state, the newest first."""
    state = case(
        (ApiKey.revoked_at.is_not(None), "revoked"),
        (ApiKey.expires_at <= func.now(), "expired"),
        else_="valid",
    )
    query = select(ApiKey, Owner.name, state).join(Owner, Owner.id == ApiKey.owner_id)
    return query.order_by(ApiKey.id.desc())


def list_keys(session: Session) -> list[KeyView]:
    """List every key, the newest first."""
    return [KeyView(*row) for row in session.execute(select_keys())]


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


def identify(session: Session, plaintext: str | None, *, is_key_required: bool) -> Caller:
    """Give who is asking, and note that the key was used, at most once a minute.

    Raises:
        Unauthorized: the key is not known, or there is none and one is required.
        KeyRevoked, KeyExpired: it was valid once; only who holds it can be told so.
    """
    if plaintext is not None:
        return _prove(session, _hash(plaintext))
    found = OPEN.find(session)
    if is_key_required or found is None or found.has_keys:
        raise Unauthorized()
    owner_id = found.owner_id or ensure_owner(session, OPEN_OWNER).id
    return Caller(owner_id, OPEN_OWNER, role="admin", key_id=None)


def _prove(session: Session, key_hash: str) -> Caller:
    found = PROOF.find(session, key_hash=key_hash)
    if found is None or not hmac.compare_digest(found.key_hash, key_hash):
        raise Unauthorized("This API key is not known.")
    if found.is_revoked:
        raise KeyRevoked()
    if found.is_expired:
        raise KeyExpired()
    if found.is_to_note:
        _note_use(session, found.id)
    return Caller(found.owner_id, found.name, role=found.role, key_id=found.id)


def _note_use(session: Session, key_id: str) -> None:
    """Write when the key was used, unless another request is about to."""
    free = select(ApiKey.id).where(ApiKey.id == key_id).with_for_update(skip_locked=True, key_share=True)
    session.execute(
        update(ApiKey)
        .where(ApiKey.id.in_(free))
        .values(last_used_at=func.now())
        .execution_options(synchronize_session=False)
    )


def _hash(plaintext: str) -> str:
    return hashlib.sha256(plaintext.encode("utf-8", "surrogatepass")).hexdigest()
