"""Who may ask, and from where?

With a key: whom it proves. While no key was ever made the service is open, so it answers only on loopback,
only under an allowed host name (against DNS rebinding), and takes bodies as JSON alone (against other sites'
forms).
"""

import ipaddress
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from api.dependencies import PartsOf
from api.errors import UnsupportedMediaType
from dmsae.errors import Forbidden, Unauthorized
from dmsae.service import keys
from dmsae.service.settings import Settings

bearer = HTTPBearer(auto_error=False, description="An API key, made by `dmsae keys create`.")


@dataclass(frozen=True)
class Caller:
    """The owner who is asking."""

    owner_id: str
    name: str


def identify_caller(
    request: Request,
    parts: PartsOf,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)],
) -> Caller:
    """Give who is asking.

    Raises:
        Unauthorized: a key is required and there is none, or it is not valid.
        Forbidden: the open service was asked from elsewhere.
        UnsupportedMediaType: there is a body that is not JSON.
    """
    plaintext = credentials.credentials if credentials is not None else None
    if plaintext is None and "authorization" in request.headers:
        raise Unauthorized()
    required = parts.settings.require_key
    owner, is_open = parts.database.run(
        lambda session: keys.identify(session, plaintext, is_key_required=required)
    )
    if is_open:
        _check_open(request, parts.settings)
    _check_media_type(request)
    return Caller(owner.id, owner.name)


CallerOf = Annotated[Caller, Depends(identify_caller)]


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


def _check_open(request: Request, settings: Settings) -> None:
    """Refuse what could come from another machine or another site."""
    local_address = request.scope.get("server") or ("", None)
    if local_address[1] is not None and not is_loopback(local_address[0]):
        raise Forbidden("Without an API key the service answers on loopback only: make a key first.")
    hosts = request.headers.getlist("host")
    allowed = {host.lower().strip("[]") for host in settings.allowed_hosts}
    if len(hosts) != 1 or _host_name(f"//{hosts[0]}") not in allowed:
        raise Forbidden("Without an API key only the host names in DMSAE_ALLOWED_HOSTS are answered.")
    origin = request.headers.get("origin")
    if origin is not None and request.method not in ("GET", "HEAD") and _host_name(origin) not in allowed:
        raise Forbidden("Without an API key other sites may not change anything here.")


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _check_media_type(request: Request) -> None:
    if request.method in ("GET", "HEAD"):
        return
    given = request.headers.get("content-type")
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    if given is None and not has_body:
        return
    if (given or "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType()
