"""The heart of one attempt: renews its lease in a thread and over a connection of its own.

Without Postgres it goes on trying and the trainer trains on. Only an answer stops it: the attempt is stale,
or the job is being cancelled.
"""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from dmsae.errors import DatabaseRefused, StaleAttempt, Unavailable
from dmsae.service.claims import Claim
from dmsae.service.database import Database
from dmsae.service.leases import renew
from dmsae.service.settings import Settings
from worker.threads import thread_of
from worker.trainer_output import TrainerOutput

log = structlog.get_logger()

WAIT_S = 0.1


class Heartbeat:
    """Beats while the `with` block runs; `changed` is set whenever there is an answer to act on.

    The block ends once the last beat has: else what it reports would be lost. Where Postgres keeps that beat
    waiting, `gives_up` says when not to wait any longer.
    """

    def __init__(
        self, settings: Settings, claim: Claim, output: TrainerOutput, *, gives_up: Callable[[], bool]
    ) -> None:
        self._settings, self._gives_up = settings, gives_up
        self._claim = claim
        self._output = output
        self._stop = threading.Event()
        self._thread = thread_of(self._run, name="heartbeat")
        self.changed = threading.Event()
        self.is_stale = False
        self.is_cancelling = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        while self._thread.is_alive() and not self._gives_up():
            self._thread.join(WAIT_S)

    def _run(self) -> None:
        url = self._settings.database_url.get_secret_value()
        database = Database(url, wake_up=lambda _: None, pool_size=1)
        try:
            while not self.is_stale:
                self._beat(database)
                if self._stop.wait(self._settings.heartbeat_s):
                    return
        finally:
            database.dispose()

    def _beat(self, database: Database) -> None:
        report = self._output.take_report()
        try:
            state = database.run(
                lambda session: renew(session, self._claim, lease_s=self._settings.lease_s, report=report)
            )
        except StaleAttempt:
            self.is_stale = True
        except Unavailable as error:
            self._output.give_back(report)
            log.warning("heartbeat_missed", error=error.message)
            return
        except DatabaseRefused as error:
            # What the database refuses today it refuses tomorrow: better to lose a report than the lease.
            log.error("report_refused", kind=error.fields["kind"])
            return
        else:
            self.is_cancelling = state.is_cancelling
        if self.is_stale or self.is_cancelling:
            self.changed.set()
