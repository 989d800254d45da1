"""How is a delivery sent? One POST to the address that was looked at, within a time limit for all of it.

No redirect is followed, no proxy asked, nothing of the answer read but its status.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import NamedTuple

import httpx

from dmsae.errors import DmsaeError
from dmsae.service.webhook_deliveries import Due
from dmsae.service.webhook_signing import derive_secret, sign
from dmsae.service.webhook_targets import Target, find_target

TIMEOUT_S = 15.0
USER_AGENT = "dmsae-webhooks"


class Tried(NamedTuple):
    """What a try came to."""

    status: int | None
    error: str | None
    """One sentence; None if it was delivered."""


def send_all(due: Sequence[Due], *, key: str, allow_private: bool) -> list[Tried]:
    """Try deliveries side by side, and give what became of each."""

    async def send_each() -> list[Tried]:
        trust = httpx.create_ssl_context(trust_env=False)
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(
            verify=trust, trust_env=False, timeout=TIMEOUT_S, limits=limits, follow_redirects=False
        ) as http:
            tries = [_send(http, each, key=key, allow_private=allow_private) for each in due]
            return list(await asyncio.gather(*tries))

    return asyncio.run(send_each())


async def _send(http: httpx.AsyncClient, due: Due, *, key: str, allow_private: bool) -> Tried:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            target = await asyncio.to_thread(find_target, due.url, allow_private=allow_private)
            return await _post(http, target, due, secret=derive_secret(key, due.webhook_id))
    except DmsaeError as error:
        return Tried(None, error.message)
    except TimeoutError:
        return Tried(None, f"It took longer than {TIMEOUT_S:g} s.")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Tried(None, f"The connection failed: {type(error).__name__}.")


async def _post(http: httpx.AsyncClient, target: Target, due: Due, *, secret: str) -> Tried:
    body = json.dumps(due.body, allow_nan=False).encode()
    host = f"[{target.host}]" if ":" in target.host else target.host
    address = f"[{target.address}]" if ":" in target.address else target.address
    headers = {
        **sign(secret, due.id, int(time.time()), body),
        "Host": f"{host}:{target.port}",
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
    }
    url = f"{target.scheme}://{address}:{target.port}{target.path}"
    extensions = {"sni_hostname": target.host}
    async with http.stream("POST", url, content=body, headers=headers, extensions=extensions) as answer:
        status = answer.status_code
    return Tried(status, None if 200 <= status < 300 else f"It was answered with status {status}.")
