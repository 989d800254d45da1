"""How is a POST done once, however often its client sends it? By its `Idempotency-Key`.

Every POST that changes something runs its use case through `Once`. A key that was answered is answered again
before anything else is looked at.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from api.dependencies import Parts, PartsOf
from api.schemas import Answer
from api.security import CallerOf
from dmsae.errors import BadRequest
from dmsae.service import idempotency
from dmsae.service.database import Transaction, UseCase
from dmsae.service.idempotency import Asked, StoredAnswer
from dmsae.service.keys import Caller

Shown = TypeVar("Shown", bound=Answer)

TRUE = ("1", "t", "true", "y", "yes", "on")
REPLAYED = {"Idempotency-Replayed": "true"}
KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern="^[!-~]+$",
        description="Any text of your own: the same POST with the same key within 24 hours is done once, and"
        " answered again with `Idempotency-Replayed: true`. With another body: 409.",
    ),
]


class Replayed(Exception):
    """This POST was answered before."""

    def __init__(self, stored: StoredAnswer) -> None:
        super().__init__()
        self.stored = stored


@dataclass(frozen=True)
class Made(Generic[Shown]):
    """What a POST did, as it is answered."""

    answer: Shown
    status: int = 200
    location: str | None = None
    hidden: tuple[str, ...] = ()
    """Fields that are shown once and stored nowhere: null when it is answered again."""


@dataclass(frozen=True)
class Once:
    """One POST, its parts and caller; done once for each key."""

    parts: Parts
    caller: Caller
    response: Response
    asked: Asked | None

    def run(self, use_case: UseCase[Made[Shown]]) -> Shown:
        """Do it in one transaction, and give the answer with its status and `Location` set.

        Raises:
            Replayed: another request with the same key did it first.
        """
        made = self.parts.database.run(lambda session: self._do(session, use_case))
        self.response.status_code = made.status
        if made.location is not None:
            self.response.headers["Location"] = made.location
        return made.answer

    def _do(self, session: Transaction, use_case: UseCase[Made[Shown]]) -> Made[Shown]:
        if self.asked is None:
            return use_case(session)
        stored = idempotency.begin(session, self.asked)
        if stored is not None:
            raise Replayed(stored)
        made = use_case(session)
        answer = made.answer.model_dump(mode="json") | dict.fromkeys(made.hidden)
        idempotency.finish(session, self.asked, StoredAnswer(made.status, made.location, answer))
        return made


async def read_body(request: Request) -> bytes:
    """Give the body as it came."""
    return await request.body()


async def get_once(
    request: Request,
    response: Response,
    parts: PartsOf,
    caller: CallerOf,
    body: Annotated[bytes, Depends(read_body)],
    key: KeyHeader = None,
) -> Once:
    """Give what does this POST once.

    Raises:
        Replayed: it was done.
        BadRequest: a dry run, which does nothing, has a key.
        IdempotencyKeyReused: the same key came with another body.
    """
    if key is None:
        return Once(parts, caller, response, None)
    if request.query_params.get("dry_run", "").lower() in TRUE:
        rule = "a dry run stores nothing, so nothing can be done twice: leave the key out"
        raise BadRequest(f"Idempotency-Key = {key!r}: {rule}.", param="Idempotency-Key")
    asked = Asked(caller.owner_id, request.method, request.url.path, key, _hash(request, body))
    stored = await run_in_threadpool(_find_answer, parts, asked)
    if stored is not None:
        raise Replayed(stored)
    return Once(parts, caller, response, asked)


OnceOf = Annotated[Once, Depends(get_once)]


def add_replays(app: FastAPI) -> None:
    """Answer again what was answered before."""

    def replay(_: Request, found: Exception) -> Response:
        assert isinstance(found, Replayed)  # noqa: S101 - registered for this class alone
        stored = found.stored
        location = {} if stored.location is None else {"Location": stored.location}
        return JSONResponse(stored.answer, status_code=stored.status, headers={**REPLAYED, **location})

    app.add_exception_handler(Replayed, replay)


def _find_answer(parts: Parts, asked: Asked) -> StoredAnswer | None:
    return parts.database.run(lambda session: idempotency.find_answer(session, asked))


def _hash(request: Request, body: bytes) -> str:
    """Give a hash of what was asked for, the same however its JSON is written."""
    asked = [sorted(request.query_params.multi_items()), _parsed(body) if body else None]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body, parse_float=_number)
    except (ValueError, RecursionError):
        return body.decode("latin-1")  # no JSON: it is refused later


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
