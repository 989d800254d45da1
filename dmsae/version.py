"""Which version is this, and which servers does a client of it understand?"""

import re

VERSION = "0.1.0"
"""Of the package, the API and the client alike; pyproject.toml says the same."""
VERSION_HEADER = "DMSAE-Version"
"""Of every answer of the API."""


def is_understood(server: str, client: str = VERSION) -> bool:
    """Tell whether a client understands a server: the same major version, and no older minor one.

    Within one major version the API only grows (a change that breaks its document fails CI), so a server may
    be newer than its client; an older one may lack what the client asks for.
    """
    (server_major, server_minor), (client_major, client_minor) = _parts(server), _parts(client)
    return server_major == client_major and server_minor >= client_minor


def _parts(version: str) -> tuple[int, int]:
    found = re.match(r"(\d{1,9})\.(\d{1,9})", version)
    return (-1, -1) if found is None else (int(found[1]), int(found[2]))
