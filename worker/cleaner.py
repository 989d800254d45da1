"""Deletes what may go, here and nowhere else: objects in the store, and what deleted jobs left in the tables.

It runs beside the sweeper's other duties, in a thread of its own: a store that hangs must not keep leases
from being watched. Of several replicas one acts. Each step is bounded and may be repeated: what is to go is
marked first, then its object is deleted, then its row.
"""

import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import structlog

from dmsae.service import checkpoints, idempotency, purging, retention, uploads
from dmsae.service.database import Database, Transaction
from dmsae.service.leadership import CLEANER_LOCK
from dmsae.service.logs import attempt_fields
from dmsae.service.objects import ObjectStore
from dmsae.service.settings import Settings
from dmsae.service.tallies import Action, count_actions
from worker.chore import Chore

log = structlog.get_logger()

DAY_S = 86_400.0
HOUR_S = 3600.0
BATCH = 500
"""Rows, objects or attempts of one step."""


class Cleaner(Chore):
    """One replica of it."""

    failed_event = "cleaning_failed"
    crashed_event = "cleaning_crashed"

    def __init__(
        self, settings: Settings, database: Database, objects: ObjectStore, *, batch: int = BATCH
    ) -> None:
        super().__init__(database, key=CLEANER_LOCK, rest_s=settings.clean_s)
        self._settings = settings
        self._objects = objects
        self._batch = batch
        self._purged_at = -HOUR_S
        self._done: Counter[Action] = Counter()

    def _do_part(self) -> bool:
        is_due = time.monotonic() - self._purged_at >= HOUR_S
        has_more = [self._expire(), self._delete_marked(), self._delete_checkpoints()]
        has_more += [self._clear_jobs(), self._delete_abandoned()]
        if is_due:
            has_more.append(self._purge_jobs())
            if not any(has_more):
                self._abandon_uploads()
                self._purged_at = time.monotonic()
        self._count_cleaning()
        return any(has_more)

    def _count_cleaning(self) -> None:
        """Note that a part was done to its end, and what went with it."""
        done = self._done + Counter[Action]({"cleaned": 1})
        self._database.run(lambda session: count_actions(session, done))
        self._done.clear()

    def _expire(self) -> bool:
        """Note until when jobs are kept, delete those whose time is over, mark uploads that nobody uses.

        Forget the keys of POSTs that were answered more than a day ago.
        """
        settings, run = self._settings, self._database.run
        default_days = settings.retention_days
        n_noted = run(lambda s: retention.note_expiry(s, default_days=default_days, limit=self._batch))
        expired = run(lambda s: retention.delete_expired(s, limit=self._batch))
        for job_id in expired:
            log.info("job_expired", job=job_id)
        self._done["job_expired"] += len(expired)
        after_s = max(settings.upload_days * DAY_S, settings.presign_s)
        unused = run(lambda s: uploads.mark_unused(s, after_s=after_s, limit=self._batch))
        for key in unused:
            log.info("upload_unused", key=key)
        self._done["upload_unused"] += len(unused)
        n_forgotten = run(lambda s: idempotency.forget_old(s, limit=self._batch))
        return self._batch in (n_noted, len(expired), len(unused), n_forgotten)

    def _delete_marked(self) -> bool:
        """Delete marked objects, and then the rows that named them."""
        return any(
            [
                self._delete(purging.marked_artifacts, purging.forget_artifacts),
                self._delete(uploads.marked_uploads, uploads.forget_uploads),
            ]
        )

    def _delete_checkpoints(self) -> bool:
        """Delete checkpoints from which nobody will go on, and then their rows."""
        n_ended = self._database.run(
            lambda s: checkpoints.supersede_ended(s, ended_before_s=DAY_S, limit=self._batch)
        )
        prefixes = self._database.run(lambda s: checkpoints.superseded_checkpoints(s, limit=self._batch))
        for prefix in prefixes:
            n_deleted = self._objects.delete_prefix(prefix)
            self._database.run(partial(checkpoints.forget_checkpoint, prefix=prefix))
            self._done["checkpoint_deleted"] += 1
            log.info("checkpoint_deleted", prefix=prefix, n_deleted=n_deleted)
        return self._batch in (n_ended, len(prefixes))

    def _delete(
        self, find: Callable[..., list[str]], forget: Callable[[Transaction, list[str]], None]
    ) -> bool:
        keys = self._database.run(partial(find, limit=self._batch))
        for key in keys:
            self._objects.delete(key)
        if keys:
            self._database.run(lambda session: forget(session, keys))
            self._done["object_deleted"] += len(keys)
            log.info("objects_deleted", n_deleted=len(keys))
        return len(keys) == self._batch

    def _clear_jobs(self) -> bool:
        """Remove a part of what deleted jobs left beside their latents."""
        job_ids = self._database.run(lambda s: purging.jobs_to_clear(s, limit=self._batch))
        done = [
            self._database.run(partial(purging.clear_job, job_id=job_id, limit=self._batch))
            for job_id in job_ids
        ]
        return not all(done)

    def _purge_jobs(self) -> bool:
        """Remove a part of the latents and cycles of deleted jobs to which nothing refers."""
        job_ids = self._database.run(lambda s: purging.jobs_to_purge(s, limit=self._batch))
        done = [
            self._database.run(partial(purging.purge_job, job_id=job_id, limit=self._batch))
            for job_id in job_ids
        ]
        return not all(done) or len(job_ids) == self._batch

    def _delete_abandoned(self) -> bool:
        """Delete what attempts without success left in the store."""
        abandoned = self._database.run(
            lambda s: purging.abandoned_attempts(s, closed_before_s=DAY_S, limit=self._batch)
        )
        for held in abandoned:
            with attempt_fields(held):
                n_deleted = self._objects.delete_prefix(held.object_prefix)
                self._database.run(partial(purging.note_cleared, attempt_id=held.attempt_id))
                if n_deleted:
                    log.info("objects_deleted", prefix=held.object_prefix, n_deleted=n_deleted)
            self._done["object_deleted"] += n_deleted
        return len(abandoned) == self._batch

    def _abandon_uploads(self) -> None:
        """Abandon uploads in parts that workers began and never ended."""
        n_abandoned = self._objects.abandon_uploads("jobs/", older_than_s=DAY_S)
        if n_abandoned:
            log.info("part_uploads_abandoned", n_abandoned=n_abandoned)
