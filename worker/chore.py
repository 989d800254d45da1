"""Work that one replica does in a thread of its own, a bounded part at a time, for as long as it leads."""

import threading
from abc import ABC, abstractmethod
from typing import ClassVar

import structlog

from dmsae.errors import DatabaseRefused, Unavailable
from dmsae.service.database import Database
from dmsae.service.leadership import Leadership

log = structlog.get_logger()


class Chore(ABC):
    """One replica of it; `do_part` acts only while it holds the lead."""

    failed_event: ClassVar[str]
    """What the log calls a part that a database or store which is away cut off."""
    crashed_event: ClassVar[str]
    """What the log calls one that our own code cut off."""

    def __init__(self, database: Database, *, key: int, rest_s: float) -> None:
        self._database = database
        self._leadership = Leadership(database, key=key)
        self._rest_s = rest_s

    def run(self, stop: threading.Event) -> None:
        """Do part after part until told to stop, with a rest where nothing more waits."""
        while not stop.is_set():
            try:
                has_more = self.do_part()
            except Exception as error:  # noqa: BLE001 - else nothing would be done until a restart
                log.error(self.crashed_event, error=type(error).__name__)
                has_more = False
            if not has_more:
                stop.wait(self._rest_s)
        self.resign()

    def do_part(self) -> bool:
        """Do a bounded part of what is to be done; true if more of it waits."""
        try:
            return self._leadership.hold() and self._do_part()
        except (Unavailable, DatabaseRefused) as error:
            log.warning(self.failed_event, error=type(error).__name__, reason=error.message)
            self.resign()
            return False

    def resign(self) -> None:
        """Let another replica act."""
        self._leadership.resign()

    @abstractmethod
    def _do_part(self) -> bool:
        """Do it; this replica leads."""
