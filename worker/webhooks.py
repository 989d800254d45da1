"""Tells webhooks that jobs have ended, in a thread of the sweeper's; of several replicas one acts.

A try that is cut off is made again: a receiver knows by the delivery's id what it was told already.
"""

import time
from functools import partial

import structlog

from dmsae.service import webhook_deliveries, webhook_posting
from dmsae.service.database import Database
from dmsae.service.leadership import WEBHOOK_LOCK
from dmsae.service.settings import Settings
from worker.chore import Chore

log = structlog.get_logger()

LOOK_EVERY_S = 1.0
BATCH = 20
FORGET_EVERY_S = 3600.0
FORGOTTEN_AT_ONCE = 1000


class Messenger(Chore):
    """One replica of it; without a key there are no webhooks, and nothing is done."""

    failed_event = "delivering_failed"
    crashed_event = "delivering_crashed"

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(database, key=WEBHOOK_LOCK, rest_s=LOOK_EVERY_S)
        self._settings = settings
        self._forgot_at = -FORGET_EVERY_S

    def _do_part(self) -> bool:
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
