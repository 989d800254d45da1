"""Who is watching which job, and what is new to them? One hub in each process of the API.

A single thread looks for all watchers at once: one batched SELECT a second, sooner where Postgres hints at
news of a job that is watched (LISTEN), and a second one where there are events to hand out. What it found
goes to the event loop in one call, and a watcher without news is left alone. No watcher holds a connection, a
thread or a transaction. A number is drawn under the lock of its job's row, so events commit in their order,
and a watcher's place is the last number that it was handed: whatever hint is lost, nothing is told twice or
not at all.
"""

import asyncio
import contextlib
import selectors
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import psycopg
import structlog
from sqlalchemy import Connection, text

from dmsae.errors import DatabaseRefused, QuotaExceeded, Unavailable
from dmsae.service.database import Database, translated_errors
from dmsae.service.events import EVENTS_CHANNEL, Head, ToldEvent, read_events, read_heads

log = structlog.get_logger()

LOOK_EVERY_S = 1.0
LOOK_AT_MOST_EVERY_S = 0.05
"""Hints that come closer together are answered as one."""
BUFFERED = 200
"""Events that wait for a slow client at most; the next ones are read when it has taken some."""


class Watcher:
    """One stream or long-poll: what is new to it waits here. To be used in the event loop that made it."""

    def __init__(self, job_id: str, *, after: int, ask: Callable[[], None]) -> None:
        self.job_id = job_id
        self.head: Head | None = None
        """How the job was last seen; None before the first look."""
        self.sent_to = after
        self.handed_to = after
        """The hub's: the last number that it handed over."""
        self._ask = ask
        self.loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._events: list[ToldEvent] = []
        self.is_closed = False
        """Whether the process is about to end."""

    @property
    def has_room(self) -> bool:
        """Whether it may be handed more."""
        return self.handed_to - self.sent_to < BUFFERED

    @property
    def has_all(self) -> bool:
        """Whether the job has ended, or is gone, and all its events were taken."""
        head = self.head
        return head is not None and head.has_ended and self.sent_to >= head.event_seq

    async def wait(self, timeout_s: float) -> list[ToldEvent]:
        """Wait for news and take the events among them; none if only the job changed, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        self._news.clear()
        events, self._events = self._events, []
        if events:
            had_room = self.has_room
            self.sent_to = events[-1].seq
            if not had_room:
                self._ask()
        return events

    def close(self) -> None:
        """Say from any thread that nothing more will come."""
        self.is_closed = True
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._news.set)

    def take(self, head: Head, events: Sequence[ToldEvent]) -> None:
        """Take what the hub found, in the loop."""
        is_new = head != self.head
        self.head = head
        self._events += events
        if events or is_new:
            self._news.set()


class EventHub:
    """All watchers of one process; its thread and its connection begin with the first of them."""

    def __init__(self, database: Database, *, most: int, most_per_owner: int) -> None:
        self._database = database
        self._most, self._most_per_owner = most, most_per_owner
        self._lock = threading.Lock()
        self._watchers: set[Watcher] = set()
        self._by_job: dict[str, list[Watcher]] = {}
        """As they were at the last look."""
        self._per_owner: Counter[str] = Counter()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._ears: _Ears | None = None

    @contextlib.contextmanager
    def watching(self, job_id: str, *, owner_id: str, after: int) -> Iterator[Watcher]:
        """Watch a job from behind a sequence number for as long as the block lasts.

        Raises:
            QuotaExceeded: the owner watches as much as it may.
            Unavailable: so does this process, or it is about to end.
        """
        watcher = Watcher(job_id, after=after, ask=self._ask)
        self._admit(watcher, owner_id)
        try:
            yield watcher
        finally:
            self._dismiss(watcher, owner_id)

    def end_streams(self) -> None:
        """Let every stream and long-poll end now, and admit no more; from any thread."""
        self._stopping.set()
        with self._lock:
            for watcher in self._watchers:
                watcher.close()
        self._ask()

    def close(self) -> None:
        """End all of it, and wait for the thread."""
        self.end_streams()
        if self._thread is not None:
            self._thread.join(10)

    def _admit(self, watcher: Watcher, owner_id: str) -> None:
        with self._lock:
            if self._stopping.is_set():
                raise Unavailable("This process of the API is about to end; ask again.")
            if self._per_owner[owner_id] >= self._most_per_owner:
                raise QuotaExceeded(
                    f"This owner has {self._most_per_owner} streams and long-polls open; "
                    "end some of them (DMSAE_STREAMS_PER_OWNER).",
                    retry_after_s=5,
                )
            if len(self._watchers) >= self._most:
                raise Unavailable(
                    f"This process has {self._most} streams and long-polls open; try again later.",
                    retry_after_s=5,
                )
            self._watchers.add(watcher)
            self._per_owner[owner_id] += 1
            if self._thread is None:
                self._ears = _Ears()
                self._thread = threading.Thread(target=self._run, name="event-hub", daemon=True)
                self._thread.start()
        self._ask()

    def _ask(self) -> None:
        """Let the thread look now."""
        if self._ears is not None:
            self._ears.wake()

    def _dismiss(self, watcher: Watcher, owner_id: str) -> None:
        with self._lock:
            self._watchers.discard(watcher)
            self._per_owner[owner_id] -= 1
            if not self._per_owner[owner_id]:
                del self._per_owner[owner_id]

    def _run(self) -> None:
        ears = cast("_Ears", self._ears)
        is_away = False
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._look(ears)
                is_away = False
            except (Unavailable, DatabaseRefused) as error:
                if not is_away:
                    log.warning("event_hub_waits", error=type(error).__name__)
                is_away = True
                ears.drop()
            except Exception as error:  # noqa: BLE001 - else every stream would stand still until a restart
                log.error("event_hub_crashed", error=type(error).__name__)
                is_away = True
                ears.drop()
            ears.listen(LOOK_EVERY_S, is_deaf=is_away, is_watched=self._is_watched)
            self._stopping.wait(max(0.0, began + LOOK_AT_MOST_EVERY_S - time.monotonic()))
        ears.close()

    def _is_watched(self, job_id: str) -> bool:
        return job_id in self._by_job

    def _look(self, ears: "_Ears") -> None:
        """Look once for all watchers.

        Raises:
            Unavailable: Postgres does not answer.
        """
        by_job: dict[str, list[Watcher]] = defaultdict(list)
        with self._lock:
            for watcher in self._watchers:
                by_job[watcher.job_id].append(watcher)
        self._by_job = by_job
        if not by_job:
            return
        with translated_errors():
            connection = ears.connect(self._database)
            heads = read_heads(connection, list(by_job))
            behind = {
                (watcher.job_id, watcher.handed_to)
                for watcher in (each for watchers in by_job.values() for each in watchers)
                if watcher.has_room and watcher.handed_to < heads[watcher.job_id].event_seq
            }
            found = read_events(connection, behind, limit=BUFFERED) if behind else {}
        handed: dict[asyncio.AbstractEventLoop, list[_News]] = defaultdict(list)
        for job_id, watchers in by_job.items():
            for watcher in watchers:
                events = found.get((job_id, watcher.handed_to), ()) if watcher.has_room else ()
                if events:
                    watcher.handed_to = events[-1].seq
                if events or heads[job_id] != watcher.head:
                    handed[watcher.loop].append(_News(watcher, heads[job_id], events))
        for loop, news in handed.items():
            with contextlib.suppress(RuntimeError):  # a loop that has ended needs none
                loop.call_soon_threadsafe(_hand_out, news)


class _News(NamedTuple):
    watcher: Watcher
    head: Head
    events: Sequence[ToldEvent]


def _hand_out(news: Sequence[_News]) -> None:
    for watcher, head, events in news:
        watcher.take(head, events)


class _Ears:
    """The hub's one connection, and how its thread sleeps: until a hint, a call or the time is over."""

    def __init__(self) -> None:
        self._called, self._caller = socket.socketpair()
        self._called.setblocking(False)
        self._caller.setblocking(False)
        self._connection: Connection | None = None
        self._driver: psycopg.Connection | None = None

    def wake(self) -> None:
        """Let the thread look now; from any thread."""
        with contextlib.suppress(OSError):
            self._caller.send(b"!")

    def connect(self, database: Database) -> Connection:
        """Give the connection, which is no part of the pool: it stays open and listens."""
        if self._connection is None:
            self._connection = database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            self._driver = cast("psycopg.Connection", self._connection.connection.driver_connection)
            self._connection.detach()
            self._connection.execute(text(f"LISTEN {EVENTS_CHANNEL}"))
        return self._connection

    def drop(self) -> None:
        """Forget the connection, whatever state it is in."""
        if self._driver is not None:
            self._driver.close()  # it is no part of the pool, which would do it
            self._driver = None
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None

    def listen(self, timeout_s: float, *, is_deaf: bool, is_watched: Callable[[str], bool]) -> None:
        """Sleep until Postgres or `wake` hints at news of what is watched; a deaf one sleeps it out."""
        ends_at = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._called, selectors.EVENT_READ)
            if self._driver is not None and not self._driver.closed:
                selector.register(self._driver.fileno(), selectors.EVENT_READ)
            while not self._has_heard(is_watched) and (left_s := ends_at - time.monotonic()) > 0:
                selector.select(left_s)
                if self._was_called() or is_deaf:
                    break
        if is_deaf:
            time.sleep(LOOK_AT_MOST_EVERY_S)

    def _was_called(self) -> bool:
        try:
            return bool(self._called.recv(4096))
        except BlockingIOError:
            return False

    def _has_heard(self, is_watched: Callable[[str], bool]) -> bool:
        """Take all hints, and tell whether one is of use; a connection that broke may have swallowed one."""
        if self._driver is None or self._driver.closed:
            return False
        try:
            hints = list(self._driver.notifies(timeout=0))
        except psycopg.Error:
            self.drop()
            return True
        return any(is_watched(hint.payload) for hint in hints)

    def close(self) -> None:
        """Close the connection and both ends of the call."""
        self.drop()
        self._called.close()
        self._caller.close()
