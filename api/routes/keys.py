"""See, make and end API keys: owners their own, administrators everybody's."""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query

from api import control_schemas
from api.control_schemas import KeyList, KeyMadeOut
from api.dependencies import Cursor, PartsOf
from api.idempotency import Made, OnceOf
from api.security import CallerOf
from dmsae.service import key_control
from dmsae.service.control_requests import KeyRequest, OwnerName
from dmsae.service.database import Transaction

router = APIRouter(prefix="/keys", tags=["keys"])

KeyId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Id of a key.")]
Limit = Annotated[int, Query(ge=1, le=200)]
Whose = Annotated[OwnerName | None, Query(description="Only this owner's.")]
Wanted = Annotated[KeyRequest, Body(examples=[control_schemas.KEY_REQUEST])]


@router.get("")
def list_keys(
    caller: CallerOf, parts: PartsOf, owner: Whose = None, cursor: Cursor = None, limit: Limit = 50
) -> KeyList:
    """List keys, the newest first: one's own, or for administrators everybody's."""
    with parts.database.session_scope() as session:
        page = key_control.list_keys(session, caller, owner=owner, cursor=cursor, limit=limit)
        return KeyList.of(page)


@router.post("", status_code=201)
def make_key(body: Wanted, once: OnceOf) -> KeyMadeOut:
    """Make a key, of no higher role than the one in hand; it is shown in this answer and never again."""

    def make(session: Transaction) -> Made[KeyMadeOut]:
        view, plaintext = key_control.make_key(session, once.caller, body)
        return Made(KeyMadeOut.of(view, key=plaintext), 201, hidden=("key",))

    once.response.headers["Cache-Control"] = "no-store"
    return once.run(make)


@router.delete("/{key_id}", status_code=204)
def revoke_key(key_id: KeyId, caller: CallerOf, parts: PartsOf) -> None:
    """End a key's validity now; again is no error."""
    parts.database.run(lambda session: key_control.end_key(session, caller, key_id))
