"""A proxy between the service and the real object store, which does to its calls what a test asks for.

One connection a call, relayed byte by byte; the Host header passes as it came, so that signatures hold.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

CHUNK_BYTES = 64 << 10
HEAD_END = b"\r\n\r\n"
GO_ON = b"HTTP/1.1 100"
BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class Faults:
    """What is wrong at the moment; a test changes it while calls pass."""

    is_away: bool = False
    """Every connection is reset."""
    every: int = 0
    """Every so many calls one breaks: answered 503, reset before it is passed on, or reset in its answer."""
    spoil_every: int = 0
    """Of every so many answered GETs of an object, one has a wrong byte."""
    delay_s: float = 0.0
    """Each call waits so long before it is passed on."""
    bytes_per_s: float = 0.0
    """Each direction of a call passes no more; 0: as many as come."""


class StoreProxy:
    """Serves on a loopback port of its own, in a thread of its own, while the `with` block runs."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._calls: set[asyncio.Task[None]] = set()
        self.faults = Faults()
        self.told: Counter[str] = Counter()
        """How many calls there were, and how many of them had which fault."""
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @contextmanager
    def having(self, **faults: float) -> Iterator[None]:
        """Have these faults, and none afterwards."""
        self.faults = Faults(**faults)  # type: ignore[arg-type]
        try:
            yield
        finally:
            self.faults = Faults()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _close(self) -> None:
        self._server.close()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = asyncio.current_task()
        assert call is not None
        self._calls.add(call)
        try:
            await self._pass_on(reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._calls.discard(call)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.faults.is_away:
            self.told["away"] += 1
            raise ConnectionResetError
        head = await reader.readuntil(HEAD_END)
        self.told["calls"] += 1
        fault = self._next_fault()
        if fault is not None:
            self.told[fault] += 1
        if fault == "busy":
            writer.write(BUSY)
            await writer.drain()
            return
        if fault == "reset":
            raise ConnectionResetError
        if self.faults.delay_s:
            self.told["delayed"] += 1
            await asyncio.sleep(self.faults.delay_s)
        there, back = await asyncio.open_connection(*self._upstream)
        back.write(_closing(head))
        sent = asyncio.create_task(self._relay(reader, back))
        try:
            while (answer := await there.readuntil(HEAD_END)).startswith(GO_ON):
                writer.write(answer)
            if fault == "cut":
                raise ConnectionResetError
            writer.write(answer)
            if self._is_to_spoil(head, answer):
                body = await there.read(CHUNK_BYTES)
                writer.write(bytes([body[0] ^ 1]) + body[1:] if body else body)
            await self._relay(there, writer)
        finally:
            sent.cancel()
            await asyncio.gather(sent, return_exceptions=True)
            back.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
            if self.faults.is_away:
                raise ConnectionResetError
            if self.faults.bytes_per_s:
                self.told["slowed"] += 1
                await asyncio.sleep(len(chunk) / self.faults.bytes_per_s)

    def _next_fault(self) -> str | None:
        n_calls, every = self.told["calls"], self.faults.every
        if not every or n_calls % every:
            return None
        return ("busy", "reset", "cut")[n_calls // every % 3]

    def _is_to_spoil(self, head: bytes, answer: bytes) -> bool:
        is_object = head.startswith(b"GET ") and b"?" not in head.split(b"\r\n")[0]
        if not (self.faults.spoil_every and is_object and b" 200 " in answer.split(b"\r\n")[0]):
            return False
        self.told["gets"] += 1
        is_due = self.told["gets"] % self.faults.spoil_every == 0
        self.told["spoilt"] += is_due
        return is_due


def _closing(head: bytes) -> bytes:
    """Ask the store to close the connection after its answer, which so needs no length."""
    lines = [line for line in head.removesuffix(HEAD_END).split(b"\r\n") if _name(line) != b"connection"]
    return b"\r\n".join([*lines, b"Connection: close"]) + HEAD_END


def _name(line: bytes) -> bytes:
    return line.split(b":")[0].strip().lower()
