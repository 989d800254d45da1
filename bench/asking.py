"""How is a service put under load by a client that hardly takes a share of the processors itself?

Requests are bytes made beforehand, answers are read up to their length and not parsed. Requests come by the
clock, whatever the answers take, and each is timed from when it was due: so whoever makes it wait is seen.
"""

import asyncio
import json
import time
from typing import Any, Self
from urllib.parse import urlsplit

END_OF_HEAD = b"\r\n\r\n"
EVENT = b"\ndata: "
LONGEST_IDLE_S = 3.0
"""The service closes a connection on which nothing came for 5 s."""


class Asker:
    """Asks one service over kept connections, as many as it needs."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._host, self._port = str(place.hostname), int(place.port or 80)
        self._idle: list[tuple[float, _Connection]] = []

    def request(self, method: str, path: str, body: Any = None, *, accept: str = "*/*") -> bytes:
        """Make the bytes of a request."""
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nAccept: {accept}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    async def ask(self, request: bytes) -> bytes:
        """Give the body of an answer, which must be one of success."""
        connection = await self._take()
        answer = await connection.ask(request)
        self._idle.append((time.perf_counter(), connection))
        head, _, body = answer.partition(END_OF_HEAD)
        if not head.startswith(b"HTTP/1.1 2"):
            raise RuntimeError(answer.decode())
        return body

    async def ask_for_json(self, method: str, path: str, body: Any = None) -> Any:
        """Give what is answered; not to be timed."""
        content = await self.ask(self.request(method, path, body))
        return json.loads(content) if content else None

    async def ask_by_the_clock(self, request: bytes, *, rate: float, for_s: float) -> list[float]:
        """Ask so many times a second; give what each took from when it was due, in seconds."""
        begun = time.perf_counter()

        async def timed(due: float) -> float:
            await self.ask(request)
            return time.perf_counter() - due

        asked = []
        for number in range(int(rate * for_s)):
            due = begun + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.append(asyncio.create_task(timed(due)))
        return list(await asyncio.gather(*asked))

    async def follow(self, job_id: str, opened: asyncio.Semaphore) -> int:
        """Read a job's event stream to its end; give the number of events."""
        loop = asyncio.get_running_loop()
        _, stream = await loop.create_connection(lambda: _Stream(opened), self._host, self._port)
        path = f"/jobs/{job_id}/events"
        stream.write(self.request("GET", path, accept="text/event-stream"))
        return await stream.ended

    def close(self) -> None:
        """Close the connections."""
        for _, connection in self._idle:
            connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _take(self) -> "_Connection":
        """Give the connection that was used last; one that the service may be about to close is left."""
        while self._idle:
            since, connection = self._idle.pop()
            if time.perf_counter() - since < LONGEST_IDLE_S:
                return connection
            connection.close()
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port)
        return connection


class _Talking(asyncio.Protocol):
    """A connection that one may write to."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take hold of it."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of a socket
        self._transport = transport

    def write(self, request: bytes) -> None:
        """Send it."""
        self._transport.write(request)

    def close(self) -> None:
        """End it."""
        self._transport.close()


class _Connection(_Talking):
    """One that carries one request after the other."""

    def __init__(self) -> None:
        super().__init__()
        self._answer, self._size = bytearray(), 0
        self._answered: asyncio.Future[bytes] = asyncio.Future()

    async def ask(self, request: bytes) -> bytes:
        """Give the answer, head and body."""
        self._answer, self._size = bytearray(), 0
        self._answered = asyncio.get_running_loop().create_future()
        self.write(request)
        return await self._answered

    def data_received(self, data: bytes) -> None:
        """Gather the answer."""
        self._answer += data
        if not self._size and END_OF_HEAD in self._answer:
            head = bytes(self._answer).partition(END_OF_HEAD)[0].lower()
            length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
            self._size = len(head) + len(END_OF_HEAD) + int(length or 0)
        if self._size and len(self._answer) >= self._size and not self._answered.done():
            self._answered.set_result(bytes(self._answer))

    def connection_lost(self, error: Exception | None) -> None:
        """Tell whoever waits."""
        if not self._answered.done():
            self._answered.set_exception(error or ConnectionResetError("closed without an answer"))


class _Stream(_Talking):
    """One that carries an event stream to its end."""

    def __init__(self, opened: asyncio.Semaphore) -> None:
        super().__init__()
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._opened, self._is_open = opened, False
        self._n_told, self._rest = 0, b""

    def data_received(self, data: bytes) -> None:
        """Count events; the stream has ended where its connection or its last chunk says so."""
        data = self._rest + data
        self._n_told += data.count(EVENT)
        self._rest = data[-len(EVENT) + 1 :]
        if not self._is_open:
            self._is_open = True
            self._opened.release()
        if data.endswith(b"0\r\n\r\n"):
            self.close()

    def connection_lost(self, _: Exception | None) -> None:
        """Tell how many there were."""
        self.ended.set_result(self._n_told)
