"""Is this worker still listening? While idle it wakes itself over the broker, and leaves when it is deaf.

A worker can look alive and take nothing after its broker came back. So health is the age of the last wake-up
that arrived, not the process: when the broker answers and still nothing comes, the process ends, non-zero,
for its supervisor to start it again. While the broker is away it waits; while the broker answers but is full
and takes no wake-up, the worker looks for cycles without one.
"""

import os
import random
import threading
import time
from collections.abc import Callable

import structlog

from dmsae.errors import DatabaseRefused, Unavailable
from dmsae.service.queue import ping_broker
from dmsae.service.tallies import count_action
from dmsae.service.workers import is_draining, touch_worker
from worker.alive import note_alive
from worker.draining import stop_this_worker
from worker.runtime import Runtime

log = structlog.get_logger()

DEAF_STATUS = 70
JITTER = 0.2


def leave(status: int) -> None:
    """End this process at once, whatever its threads do."""
    os._exit(status)


class IdleTimer:
    """A thread that wakes, listens and notes in the database that the worker is there."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        look: Callable[[], None],
        leave: Callable[[int], None] = leave,
        drain: Callable[[], None] = stop_this_worker,
    ) -> None:
        self._runtime = runtime
        self._look, self._leave, self._drain = look, leave, drain
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="idle", daemon=True)
        self._is_busy = False
        self._heard_at = time.monotonic()
        self._n_noted = runtime.wake_ups.n_failed

    def start(self) -> None:
        """Begin to wake this worker."""
        note_alive(self._runtime.worker.device)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; it may be in the middle of a broker's time-out."""
        self._stop.set()

    def heard(self) -> None:
        """Note that a wake-up arrived, and that the worker is busy with it."""
        self._is_busy = True
        self._heard_at = time.monotonic()

    def rest(self) -> None:
        """Note that the worker is idle again."""
        self._heard_at = time.monotonic()
        self._is_busy = False

    def _run(self) -> None:
        every_s = self._runtime.settings.idle_wake_s
        while not self._stop.wait(every_s * random.uniform(1 - JITTER, 1 + JITTER)):  # noqa: S311
            self.tick()

    def tick(self) -> None:
        """Wake the worker if it is idle, leave if it is deaf; note that it is there, end it if marked so."""
        note_alive(self._runtime.worker.device)
        if not self._is_busy:
            self._listen()
        run, worker_id = self._runtime.database.run, self._runtime.worker.id
        try:
            run(lambda session: touch_worker(session, worker_id))
            self._count_failures()
            if not self._runtime.draining.is_set() and run(lambda session: is_draining(session, worker_id)):
                log.info("worker_drains", worker=worker_id)
                self._drain()
        except (Unavailable, DatabaseRefused) as error:
            log.warning("worker_not_noted", error=type(error).__name__)

    def _count_failures(self) -> None:
        """Note in the database how many wake-ups the broker did not take since that was last noted."""
        n_failed = self._runtime.wake_ups.n_failed
        n_new = n_failed - self._n_noted
        if n_new:
            self._runtime.database.run(lambda session: count_action(session, "wake_up_failed_worker", n_new))
            self._n_noted = n_failed

    def _listen(self) -> None:
        worker = self._runtime.worker
        if not self._runtime.wake_ups.wake_worker(worker.id, worker.resource_class):
            self._heard_at = time.monotonic()
            if ping_broker(self._runtime.settings.broker_url):
                log.warning("broker_takes_nothing", worker=worker.id)
                self._look()
            return
        silent_s = time.monotonic() - self._heard_at
        if silent_s <= self._runtime.settings.deaf_after_s or self._is_busy:
            return
        if not ping_broker(self._runtime.settings.broker_url):
            self._heard_at = time.monotonic()
            return
        log.error("worker_deaf", silent_s=round(silent_s, 1))
        self._leave(DEAF_STATUS)
