"""Who may ask, how often, and from where?

With a key: whom it proves, as its role allows. Readers change nothing, and `/admin` is for administrators.
While no key was ever made the service is open, so it answers only on loopback, only under an allowed host
name (against DNS rebinding), and takes bodies as JSON alone (against other sites' forms).
"""

import ipaddress
from functools import partial
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from fastapi.security.base import SecurityBase
from fastapi.security.http import HTTPAuthorizationCredentials
from starlette.concurrency import run_in_threadpool

from api.dependencies import Parts, parts_of
from api.errors import UnsupportedMediaType
from api.request_logs import note_who_asks
from dmsae.errors import Forbidden, RateLimited, Unauthorized
from dmsae.service import keys
from dmsae.service.database import Transaction, UseCase
from dmsae.service.settings import Settings

bearer = HTTPBearer(auto_error=False, description="An API key, made by `dmsae keys create`.")

Result = TypeVar("Result")
SAFE_METHODS = ("GET", "HEAD")


class KeyScheme(SecurityBase):
    """Whom a bearer key proves, as a dependency.

    One of its own kind rather than one that has others: the framework goes through all of them again wherever
    one is named.
    """

    def __init__(self) -> None:
        self.model, self.scheme_name = bearer.model, bearer.scheme_name

    async def __call__(self, request: Request) -> keys.Caller:
        """Give who is asking, as `check_caller` does, without holding up others meanwhile."""
        credentials = await bearer(request)
        caller = await run_in_threadpool(check_caller, request, parts_of(request), credentials)
        note_who_asks(request, caller)
        return caller


identify_caller = KeyScheme()
CallerOf = Annotated[keys.Caller, Depends(identify_caller)]


class Question:
    """A request whose route asks at once who is there and what it shows: by one thread and one connection.

    A route that depends on it, and not on `identify_caller`, answers nobody but through `ask`.
    """

    def __init__(self, request: Request, credentials: HTTPAuthorizationCredentials | None) -> None:
        self._request = request
        self._credentials = credentials
        self._parts = parts_of(request)

    async def ask(self, use_case: UseCase[Result]) -> tuple[keys.Caller, Result]:
        """Give who is asking, and what a use case tells; each statement is a transaction of its own.

        Raises:
            DmsaeError: as `check_caller` does, and then nothing was asked.
        """
        try:
            return await run_in_threadpool(self._parts.database.run_alone, partial(self._ask, use_case))
        finally:
            if "caller" in self._request.scope:
                note_who_asks(self._request, self._request.scope["caller"])

    def _ask(self, use_case: UseCase[Result], session: Transaction) -> tuple[keys.Caller, Result]:
        return admit(session, self._request, self._parts, self._credentials), use_case(session)


class QuestionScheme(KeyScheme):
    """The same keys, looked at together with what is asked for."""

    async def __call__(self, request: Request) -> Question:  # type: ignore[override]
        """Give the question."""
        return Question(request, await bearer(request))


QuestionOf = Annotated[Question, Depends(QuestionScheme())]


def check_caller(
    request: Request, parts: Parts, credentials: HTTPAuthorizationCredentials | None
) -> keys.Caller:
    """Give who is asking, as `admit` does."""
    return parts.database.run_alone(lambda session: admit(session, request, parts, credentials))


def admit(
    session: Transaction, request: Request, parts: Parts, credentials: HTTPAuthorizationCredentials | None
) -> keys.Caller:
    """Give who is asking.

    Raises:
        Unauthorized: a key is required and there is none, or it is not valid.
        RateLimited: the key is used too often.
        Forbidden: the key's role does not allow it, or the open service was asked from elsewhere.
        UnsupportedMediaType: there is a body that is not JSON.
    """
    plaintext = credentials.credentials if credentials is not None else None
    if plaintext is None and "authorization" in request.headers:
        raise Unauthorized()
    required = parts.settings.require_key
    caller = keys.identify(session, plaintext, is_key_required=required)
    request.scope["caller"] = caller
    if caller.key_id is None:
        _check_open(request, parts.settings)
    else:
        _check_rate(caller.key_id, parts)
    if caller.role == "reader" and request.method not in SAFE_METHODS:
        raise Forbidden("This key is a reader's: it may look at everything and change nothing.")
    _check_media_type(request)
    return caller


async def require_admin(caller: CallerOf) -> None:
    """Let administrators pass alone.

    Raises:
        Forbidden: the key's role is another one.
    """
    if not caller.is_admin:
        raise Forbidden(f"This is for administrators, and this key is of role {caller.role}.")


def is_loopback(host: str) -> bool:
    """Tell whether an address or name that a socket is bound to is reachable from this machine alone."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _check_rate(key_id: str, parts: Parts) -> None:
    settings = parts.settings
    wait_s = parts.buckets.take(key_id, per_s=settings.rate_per_s, burst=settings.rate_burst)
    if wait_s > 0:
        raise RateLimited(
            f"With one key at most {settings.rate_burst} requests at once, and {settings.rate_per_s:g} a "
            "second after that.",
            retry_after_s=wait_s,
        )


def _check_open(request: Request, settings: Settings) -> None:
    """Refuse what could come from another machine or another site."""
    local_address = request.scope.get("server") or ("", None)
    if local_address[1] is not None and not is_loopback(local_address[0]):
        raise Forbidden("Without an API key the service answers on loopback only: make a key first.")
    hosts = request.headers.getlist("host")
    allowed = {host.lower().strip("[]") for host in settings.allowed_hosts}
    if len(hosts) != 1 or host_name(f"//{hosts[0]}") not in allowed:
        raise Forbidden("Without an API key only the host names in DMSAE_ALLOWED_HOSTS are answered.")
    origin = request.headers.get("origin")
    if origin is not None and request.method not in SAFE_METHODS and host_name(origin) not in allowed:
        raise Forbidden("Without an API key other sites may not change anything here.")


def host_name(url: str) -> str | None:
    """Give the host that a URL names; None if it names none."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _check_media_type(request: Request) -> None:
    if request.method in SAFE_METHODS:
        return
    given = request.headers.get("content-type")
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    if given is None and not has_body:
        return
    if (given or "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType()
