"""Where may a webhook go? HTTPS to public addresses; every address that a name stands for is looked at.

Where private addresses are allowed, those alone may be told by plain HTTP.

It is asked when a webhook is made and again before each delivery, which then connects to the very address
that was looked at: what a name stands for may have changed in between.
"""

import ipaddress
import socket
from typing import NamedTuple
from urllib.parse import urlsplit

from dmsae.errors import FieldProblem, InvalidConfig

LONGEST_URL = 2000
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Target(NamedTuple):
    """A checked place to connect to."""

    scheme: str
    host: str
    """As the URL names it: for the Host header and the certificate."""
    port: int
    path: str
    """With its query."""
    address: str


def find_target(url: str, *, allow_private: bool) -> Target:
    """Look a webhook's URL over, and up.

    Raises:
        InvalidConfig: it is no HTTPS URL, or its host is unknown or not public.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
        host = (parts.hostname or "").encode("idna").decode() if ":" not in (parts.hostname or "") else None
        host = host or parts.hostname or ""
    except (ValueError, UnicodeError) as error:
        raise _refused(url, "must be a URL") from error
    if parts.scheme != "https" and not (allow_private and parts.scheme == "http"):
        raise _refused(url, "must begin with https://")
    if not host or parts.username is not None or parts.password is not None or parts.fragment:
        raise _refused(url, "must name a host, and neither user, password nor fragment")
    if not url.isascii() or not url.isprintable() or " " in url or len(url) > LONGEST_URL:
        raise _refused(url, f"must be at most {LONGEST_URL} printable ASCII characters without spaces")
    addresses = _look_up(url, host, port)
    if parts.scheme != "https" and any(map(is_public, addresses)):
        raise _refused(url, "must begin with https://, for its host has a public address")
    if not allow_private and not all(map(is_public, addresses)):
        raise _refused(url, "its host must be a public address, not of this machine or a private network")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port, path, addresses[0])


def is_public(address: str) -> bool:
    """Tell whether an address is one of the Internet, seen through any wrapping of IPv4 in IPv6."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if found.teredo is not None:
            return False
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast


def _look_up(url: str, host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, ValueError) as error:
        raise _refused(url, "its host name stands for no address") from error
    return [str(entry[4][0]) for entry in found]


def _refused(url: str, rule: str) -> InvalidConfig:
    return InvalidConfig([FieldProblem("url", url[:200], rule)])
