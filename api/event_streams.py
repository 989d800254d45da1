"""How does a job's history go over HTTP while it is made? As server-sent events.

A stream holds no thread, no connection of the pool and no transaction.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.schemas import EventOut
from dmsae.service.event_hub import Watcher
from dmsae.service.events import ToldEvent

Result = TypeVar("Result")

EVENT_STREAM = "text/event-stream"
KEEP_ALIVE_S = 15.0
RETRY_MS = 2000
"""After which a client that was cut off is to come back."""
LONGEST_S = 3600.0
"""A stream ends then; its client comes back, with a key that is still valid."""
SEND_TIMEOUT_S = 30.0
"""A client that takes nothing for so long is cut off; it may come back."""
EXAMPLE = (
    "retry: 2000\n\n"
    'id: 2\ndata: {"seq":2,"kind":"job_started","message":"The first attempt began.","cycle_index":0,'
    '"attempt_number":1,"data":{},"created_at":"2026-11-25T16:21:02.550931Z"}\n\n'
    ": still here\n\n"
)


class EventStream(Response):
    """Events as they come, until the job has ended, the client is gone or the process is about to end."""

    media_type = EVENT_STREAM

    def __init__(self, watching: AbstractContextManager[Watcher]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._watching = watching

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        with self._watching as watcher:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await until_gone(receive, self._send_all(watcher, send))

    async def _send_all(self, watcher: Watcher, send: Send) -> None:
        """Send until nothing more comes; a client that takes nothing has its connection closed, unended."""
        with contextlib.suppress(TimeoutError, OSError):
            async for piece in told(watcher):
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send({"type": "http.response.body", "body": b""})


async def told(watcher: Watcher) -> AsyncIterator[bytes]:
    """Give the pieces of a stream."""
    ends_at = time.monotonic() + LONGEST_S
    yield f"retry: {RETRY_MS}\n\n".encode()
    while not (watcher.has_all or watcher.is_closed) and time.monotonic() < ends_at:
        seen = watcher.head
        events = await watcher.wait(KEEP_ALIVE_S)
        if events:
            yield b"".join(map(_framed, events))
        elif seen == watcher.head:
            yield b": still here\n\n"


async def until_gone(receive: Receive, doing: Awaitable[Result]) -> Result | None:
    """Do something for a client, whose request was read, for as long as it is there; None if it went."""
    work = asyncio.ensure_future(doing)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@lru_cache(maxsize=1024)
def _framed(event: ToldEvent) -> bytes:
    """Put an event into words, once for all streams that the hub hands it to."""
    shown = EventOut.model_validate(event).model_dump_json()
    return f"id: {event.seq}\ndata: {shown}\n\n".encode()
