"""What does an attempt do while the object store is away, slow or wrong? It tries each file again, and waits.

A cycle may have cost days: as its supervisor waits for the database, so it waits for the store, until that
answers, its patience ends, or there is a reason to stop.
"""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog

from dmsae.errors import Unavailable
from dmsae.service.objects import BytesDiffer, ObjectStore, StoredObject

log = structlog.get_logger()

DIFFERING_TRIES = 5
"""How often a file is sent or fetched whose bytes come out wrong: a store that answers is not waited for."""
LONGEST_WAIT_S = 8.0
POLL_S = 0.1

Result = TypeVar("Result")


class PatientStore:
    """The store as one attempt uses it, from any of its threads."""

    def __init__(
        self,
        objects: ObjectStore,
        *,
        patience_s: float,
        has_stopped: Callable[[], bool],
        tell: Callable[[Unavailable], None] = lambda _: None,
    ) -> None:
        """Wait so long for each file; `tell` is told once that something has to be tried again."""
        self._objects = objects
        self._patience_s = patience_s
        self._has_stopped = has_stopped
        self._tell = tell
        self._is_told = False

    def put_file(self, key: str, path: Path) -> StoredObject:
        """As `ObjectStore.put_file`."""
        return self._patiently(lambda: self._objects.put_file(key, path))

    def get_file(self, key: str, path: Path, *, sha256: str) -> None:
        """As `ObjectStore.get_file`."""
        self._patiently(lambda: self._objects.get_file(key, path, sha256=sha256))

    def get_object_if(self, key: str, etag: str, path: Path) -> None:
        """As `ObjectStore.get_object_if`."""
        self._patiently(lambda: self._objects.get_object_if(key, etag, path))

    def _patiently(self, use: Callable[[], Result]) -> Result:
        deadline = time.monotonic() + self._patience_s
        for n_tried in itertools.count(1):
            try:
                return use()
            except Unavailable as error:
                is_answered = isinstance(error, BytesDiffer)
                if is_answered and n_tried >= DIFFERING_TRIES:
                    raise
                if self._has_stopped() or time.monotonic() >= deadline:
                    raise
                log.warning("store_unavailable", n_tried=n_tried, error=error.message)
                if not self._is_told:
                    self._is_told = True
                    self._tell(error)
            self._rest(POLL_S if is_answered else min(0.25 * 2**n_tried, LONGEST_WAIT_S))
        raise AssertionError("unreachable: the loop has no end of its own")

    def _rest(self, seconds: float) -> None:
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at and not self._has_stopped():
            time.sleep(POLL_S)
