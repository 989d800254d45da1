"""Puts right what nobody else does: `python -m worker.sweeper`, in any number of replicas, of which one acts.

It closes attempts whose lease it has watched expired for one whole lease of its own uninterrupted contact
with the database, ends jobs stuck in `cancelling`, sends lost wake-ups again, works out who stands where in
line and notes which workers are gone. What is to be deleted is the business of `cleaner.py`, which runs
beside it.
"""

import signal
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import structlog

from dmsae.errors import DatabaseRefused, Unavailable
from dmsae.service.cancelling import find_cancelling
from dmsae.service.claims import QueueRules
from dmsae.service.database import Database
from dmsae.service.leadership import Leadership
from dmsae.service.leases import ExpiredLease, find_expired
from dmsae.service.logs import attempt_fields, configure_logs, job_field
from dmsae.service.objects import ObjectStore
from dmsae.service.queue import WakeUps, make_celery
from dmsae.service.queue_snapshots import take_snapshots
from dmsae.service.recording import RetryPolicy
from dmsae.service.settings import Settings, load_settings
from dmsae.service.shares import drop_old_slices
from dmsae.service.sweeping import classes_waiting, close_expired, end_cancelled
from dmsae.service.tallies import Action, count_actions
from dmsae.service.workers import mark_gone_workers
from worker.alive import SWEEPER, note_alive
from worker.chore import Chore
from worker.cleaner import Cleaner
from worker.webhooks import Messenger

log = structlog.get_logger()

GONE_AFTER_S = 60.0
LOOKING_SHARE = 0.05
"""Share of the time that working out the lines may take: a long queue is looked at less often."""
STOP_S = 10.0
"""How long a step of cleaning may take to its end once all is to stop; it may be cut off anywhere."""


@dataclass(frozen=True)
class Sighting:
    """When an expired lease was first seen, by the sweeper's own clock."""

    lease_expires_at: datetime
    seen_at: float


class Watch:
    """Remembers how long each lease was seen expired without a gap."""

    def __init__(self, lease_s: float, *, gap_s: float) -> None:
        self._lease_s = lease_s
        self._gap_s = gap_s
        self._seen: dict[str, Sighting] = {}
        self._looked_at: float | None = None

    def forget(self) -> None:
        """Begin anew: contact was lost, so nobody knows who could not renew."""
        self._seen.clear()
        self._looked_at = None

    def overdue(self, expired: list[ExpiredLease], now: float) -> list[ExpiredLease]:
        """Take what is expired now; give what has been for one whole lease."""
        if self._looked_at is not None and now - self._looked_at > self._gap_s:
            self.forget()
        self._looked_at = now
        seen = {}
        for lease in expired:
            known = self._seen.get(lease.held.attempt_id)
            is_same = known is not None and known.lease_expires_at == lease.lease_expires_at
            seen[lease.held.attempt_id] = (
                known if known is not None and is_same else Sighting(lease.lease_expires_at, now)
            )
        self._seen = seen
        return [e for e in expired if now - seen[e.held.attempt_id].seen_at >= self._lease_s]


class Sweeper:
    """One replica; `sweep` acts only while it holds the leader's lock."""

    def __init__(self, settings: Settings, database: Database, wake_ups: WakeUps) -> None:
        self._settings = settings
        self._database = database
        self._wake_ups = wake_ups
        self._leadership = Leadership(database)
        self._look_again_at = 0.0
        self._n_woken, self._n_failed = 0, wake_ups.n_failed
        self._watch = Watch(settings.lease_s, gap_s=max(3 * settings.sweep_s, settings.lease_s / 2))

    def sweep(self) -> bool:
        """Look once and put right what is wrong; false if another replica acts or a step broke off."""
        try:
            if not self._leadership.hold():
                self._watch.forget()
                return False
            self._close_expired()
            self._finish_cancelling()
            self._wake()
            self._note_gone_workers()
            self._look_at_the_queue()
            self._count_sweep()
        except (Unavailable, DatabaseRefused) as error:
            log.warning("sweep_failed", error=type(error).__name__)
            self._watch.forget()
            self.resign()
            return False
        except Exception as error:  # noqa: BLE001 - else leases would expire unseen until a restart
            log.error("sweep_crashed", error=type(error).__name__)
            return False
        return True

    def resign(self) -> None:
        """Let another replica act."""
        self._leadership.resign()

    def _close_expired(self) -> None:
        settings = self._settings
        policy = RetryPolicy(
            settings.max_attempts, settings.retry_backoff_s, max_in_all=settings.max_attempts_in_all
        )
        for expired in self._watch.overdue(self._database.run(find_expired), time.monotonic()):
            with attempt_fields(expired.held):
                outcome = self._database.run(partial(close_expired, expired=expired, policy=policy))
                if outcome is not None:
                    log.warning("attempt_expired", outcome=outcome)

    def _look_at_the_queue(self) -> None:
        """Work out who stands where in line, for at most a small share of the time."""
        if time.monotonic() < self._look_again_at:
            return
        rules = QueueRules.of(self._settings)
        took_s = self._database.run(lambda session: take_snapshots(session, rules))
        self._database.run(drop_old_slices)
        self._look_again_at = time.monotonic() + took_s / LOOKING_SHARE

    def _finish_cancelling(self) -> None:
        for job_id in self._database.run(find_cancelling):
            with job_field(job_id):
                if self._database.run(partial(end_cancelled, job_id=job_id)):
                    log.info("job_cancelled")

    def _note_gone_workers(self) -> None:
        after_s = max(GONE_AFTER_S, 5 * self._settings.idle_wake_s)
        for worker_id in self._database.run(lambda session: mark_gone_workers(session, after_s=after_s)):
            log.warning("worker_gone", worker=worker_id)

    def _wake(self) -> None:
        waiting = self._database.run(lambda s: classes_waiting(s, longer_than_s=self._settings.sweep_s))
        for resource_class in waiting:
            self._n_woken += self._wake_ups.send_wake_up(resource_class)

    def _count_sweep(self) -> None:
        """Note that a sweep got to its end, and what the broker took of it and did not."""
        n_failed = self._wake_ups.n_failed
        n_new = n_failed - self._n_failed
        done: dict[Action, int] = {"swept": 1, "wake_up_sent": self._n_woken, "wake_up_failed_sweeper": n_new}
        self._database.run(lambda session: count_actions(session, done))
        self._n_woken, self._n_failed = 0, n_failed


def main() -> None:
    """Sweep and clean until told to stop."""
    settings = load_settings()
    configure_logs(settings.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    wake_ups = WakeUps(make_celery(settings.broker_url))
    url = settings.database_url.get_secret_value()
    database = Database(url, wake_up=wake_ups.send_wake_up, pool_size=8)
    objects = ObjectStore(settings)
    sweeper = Sweeper(settings, database, wake_ups)
    chores: dict[str, Chore] = {"cleaner": Cleaner(settings, database, objects)}
    if settings.webhooks_key is not None:
        chores["webhooks"] = Messenger(settings, database)
    threads = [
        threading.Thread(target=chore.run, args=(stop,), name=name, daemon=True)
        for name, chore in chores.items()
    ]
    for thread in threads:
        thread.start()
    log.info("sweeper_started")
    try:
        while not stop.is_set():
            sweeper.sweep()
            note_alive(SWEEPER)
            stop.wait(settings.sweep_s)
    finally:
        sweeper.resign()
        for thread in threads:
            thread.join(STOP_S)
        database.dispose()
        objects.close()
    log.info("sweeper_stopped")


if __name__ == "__main__":
    main()
