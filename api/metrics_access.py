"""Who may read the metrics? A scraper of a trusted network without a key, everybody else with one.

`DMSAE_METRICS_NETWORKS` names the networks, loopback by default. A request that passed a proxy does not count
as coming from there; one under another host name than `DMSAE_ALLOWED_HOSTS` is no scraper's but a browser's
that was led here (DNS rebinding).
"""

import hashlib
import ipaddress
import threading
import time
from functools import partial
from typing import Annotated

import anyio
from fastapi import Request, Security
from fastapi.security.http import HTTPAuthorizationCredentials

from api.dependencies import PartsOf
from api.security import bearer, check_caller, host_name
from dmsae.errors import Unavailable
from dmsae.service.settings import Settings

FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
PROVEN_FOR_S = 3600.0


class ProvenKeys:
    """Keys that proved somebody a while ago: they may go on reading what is known without Postgres."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._proven_at: dict[str, float] = {}

    def note(self, plaintext: str) -> None:
        """Note that a key is valid now."""
        now = time.monotonic()
        with self._lock:
            fresh = {key: at for key, at in self._proven_at.items() if now - at < PROVEN_FOR_S}
            self._proven_at = {**fresh, _digest(plaintext): now}

    def has(self, plaintext: str) -> bool:
        """Tell whether a key was valid within the last hour."""
        with self._lock:
            return time.monotonic() - self._proven_at.get(_digest(plaintext), -PROVEN_FOR_S) < PROVEN_FOR_S


async def admit_scraper(
    request: Request,
    parts: PartsOf,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)],
) -> None:
    """Let pass who may read the metrics.

    Raises:
        Unauthorized, Forbidden, RateLimited: as for every other call, from outside the trusted networks.
        Unavailable: whether a key is valid cannot be asked, and it was not within the last hour.
    """
    if is_trusted(request, parts.settings):
        return
    metrics = request.app.state.metrics
    identify = partial(check_caller, request, parts, credentials)
    plaintext = credentials.credentials if credentials is not None else None
    try:
        await anyio.to_thread.run_sync(identify, limiter=metrics.limiter)
    except Unavailable:
        if plaintext is None or not metrics.proven.has(plaintext):
            raise
    else:
        if plaintext is not None:
            metrics.proven.note(plaintext)


def is_trusted(request: Request, settings: Settings) -> bool:
    """Tell whether a request came straight from a trusted network, under a host name of ours."""
    if request.client is None or any(name in request.headers for name in FORWARDED):
        return False
    try:
        address = ipaddress.ip_address(request.client.host)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    if not any(address in ipaddress.ip_network(network) for network in settings.metrics_networks):
        return False
    hosts = request.headers.getlist("host")
    allowed = {host.lower().strip("[]") for host in settings.allowed_hosts}
    return len(hosts) == 1 and host_name(f"//{hosts[0]}") in allowed


def _digest(plaintext: str) -> str:
    return hashlib.sha256(plaintext.encode("utf-8", "surrogatepass")).hexdigest()
