"""How does whoever answers requests wake workers without waiting for the broker? From a thread of its own.

What was committed is already true when a wake-up is handed over here; the answer goes out meanwhile. What is
logged about it still says which request it belongs to.
"""

import queue
import threading
from contextvars import Context, copy_context

import structlog

from dmsae.service.queue import MOST_WAITING, WakeUps

log = structlog.get_logger()

END_S = 5.0
"""For what is still to be sent when a process ends; workers look for work by themselves too."""


class WakeUpThread:
    """Sends wake-ups in the order in which they come; what is not sent is counted by `wake_ups`.

    Its thread begins with the first of them.
    """

    def __init__(self, wake_ups: WakeUps) -> None:
        self._wake_ups = wake_ups
        self._waiting: queue.Queue[tuple[Context, str] | None] = queue.Queue(MOST_WAITING)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def send_wake_up(self, resource_class: str) -> bool:
        """Have some worker of this class told that there may be work; false if too many wait for that."""
        self._begin()
        try:
            self._waiting.put_nowait((copy_context(), resource_class))
        except queue.Full:
            self._wake_ups.n_failed += 1
            return False
        return True

    def close(self) -> None:
        """Send what waits, for a while, and end."""
        if self._thread is None:
            return
        try:
            self._waiting.put(None, timeout=END_S)
        except queue.Full:
            return
        self._thread.join(END_S)

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="wake-ups", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            context, resource_class = waiting
            try:
                context.run(self._wake_ups.send_wake_up, resource_class)
            except Exception as error:  # noqa: BLE001 - else no worker would be woken until a restart
                self._wake_ups.n_failed += 1
                log.error("wake_up_crashed", error=type(error).__name__)
