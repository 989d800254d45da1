"""Tells webhooks that jobs have ended, in a thread of the sweeper's; of several replicas one acts.

A try that is cut off is made again: a receiver knows by the delivery's id what it was told already.
"""

import threading
import time
from functools import partial

import structlog

from dmsae.errors import DatabaseRefused, Unavailable
from dmsae.service import webhook_deliveries, webhook_posting
from dmsae.service.database import Database
from dmsae.service.leadership import WEBHOOK_LOCK, Leadership
from dmsae.service.settings import Settings

log = structlog.get_logger()

LOOK_EVERY_S = 1.0
BATCH = 20
FORGET_EVERY_S = 3600.0
FORGOTTEN_AT_ONCE = 1000


class Messenger:
    """One replica; `deliver` acts only while it holds the lead."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._leadership = Leadership(database, key=WEBHOOK_LOCK)
        self._forgot_at = -FORGET_EVERY_S

    def run(self, stop: threading.Event) -> None:
        """Deliver until told to stop; without a key there are no webhooks."""
        while not stop.is_set() and self._settings.webhooks_key is not None:
            try:
                has_more = self.deliver()
            except Exception as error:  # noqa: BLE001 - else nothing would be told until a restart
                log.error("delivering_crashed", error=type(error).__name__)
                has_more = False
            if not has_more:
                stop.wait(LOOK_EVERY_S)
        self.resign()

    def deliver(self) -> bool:
        """Try what is due, a bounded part of it; true if more of it waits."""
        try:
            return self._leadership.hold() and self._deliver()
        except (Unavailable, DatabaseRefused) as error:
            log.warning("delivering_failed", error=type(error).__name__, reason=error.message)
            self.resign()
            return False

    def resign(self) -> None:
        """Let another replica act."""
        self._leadership.resign()

    def _deliver(self) -> bool:
        key = self._settings.webhooks_key
        if key is None:
            return False
        due = self._database.run(lambda session: webhook_deliveries.find_due(session, limit=BATCH))
        tried = webhook_posting.send_all(
            due, key=key.get_secret_value(), allow_private=self._settings.webhooks_allow_private
        )
        for each, (status, error) in zip(due, tried, strict=True):
            state = self._database.run(
                partial(webhook_deliveries.note_try, due=each, status=status, error=error)
            )
            log.info("webhook_tried", webhook=each.webhook_id, delivery=each.id, status=status, state=state)
        self._forget()
        return len(due) == BATCH

    def _forget(self) -> None:
        if time.monotonic() - self._forgot_at < FORGET_EVERY_S:
            return
        self._database.run(lambda session: webhook_deliveries.forget_old(session, limit=FORGOTTEN_AT_ONCE))
        self._forgot_at = time.monotonic()
