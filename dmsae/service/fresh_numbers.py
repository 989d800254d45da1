"""How are the numbers of the queue asked for without loading the database, or waiting for one that hangs?

Over a connection of its own, so that a pool which is used up can be seen; at most once a second, whoever
asks; in a thread that may hang without holding up the answer.
"""

import threading
import time

import structlog

from dmsae.errors import DmsaeError
from dmsae.service.database import Database
from dmsae.service.queue_metrics import QueueNumbers, read_numbers
from dmsae.service.settings import Settings

log = structlog.get_logger()

LIFE_S = 1.0
PATIENCE_S = 5.0


class FreshNumbers:
    """The numbers of the queue, of this second; for any number of threads."""

    def __init__(self, settings: Settings) -> None:
        self._database = Database(settings.database_url.get_secret_value(), wake_up=str, pool_size=1)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._asked_at = self._answered_at = -LIFE_S
        self._numbers: QueueNumbers | None = None

    def read(self) -> QueueNumbers | None:
        """Give the numbers; None if the database does not answer within `PATIENCE_S` of being asked."""
        with self._lock:
            if time.monotonic() - self._answered_at < LIFE_S:
                return self._numbers
            if self._thread is None or not self._thread.is_alive():
                self._asked_at = time.monotonic()
                self._thread = threading.Thread(target=self._ask, name="metrics", daemon=True)
                self._thread.start()
            thread = self._thread
        thread.join(max(0.0, self._asked_at + PATIENCE_S - time.monotonic()))
        return None if thread.is_alive() else self._numbers

    def close(self) -> None:
        """Close the connection."""
        self._database.dispose()

    def _ask(self) -> None:
        try:
            self._numbers = self._database.run(read_numbers)
        except DmsaeError as error:
            self._numbers = None
            log.warning("numbers_not_read", error=error.message)
        finally:
            self._answered_at = time.monotonic()
