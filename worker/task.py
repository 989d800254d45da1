"""The one task: claim, supervise and record exactly one cycle, then return."""

import structlog

from dmsae.errors import Unavailable
from dmsae.service.claims import Claim, QueueRules, claim_cycle
from dmsae.service.logs import attempt_fields
from dmsae.service.workers import is_draining, register_worker, touch_worker
from worker.device_lock import hold_device
from worker.held_keys import held_keys, note_key
from worker.runtime import Runtime
from worker.supervisor import Supervisor

log = structlog.get_logger()


def run_one_cycle(runtime: Runtime, *, celery_task_id: str | None = None) -> str | None:
    """Run the best cycle that this worker may run; give the attempt's outcome, None if there was none."""
    settings = runtime.settings
    with hold_device(settings.lock_dir, runtime.worker.slot, kill_grace_s=settings.kill_grace_s) as lock:
        if lock is None:
            log.info("device_busy", device=runtime.worker.device)
            return None
        claim = _claim(runtime, celery_task_id)
        if claim is None:
            return None
        with attempt_fields(claim):
            outcome = Supervisor(runtime, claim, lock).run()
            if outcome == "succeeded" and claim.cache_key is not None:
                _note_key(runtime, claim.cache_key)
    return outcome


def _note_key(runtime: Runtime, key: str) -> None:
    try:
        note_key(runtime.settings, key)
    except OSError as error:
        log.warning("cache_key_not_noted", error=error.strerror)


def _claim(runtime: Runtime, celery_task_id: str | None) -> Claim | None:
    worker = runtime.worker
    if runtime.draining.is_set() or not runtime.disk.may_begin(runtime.settings):
        return None
    keys = held_keys(runtime.settings)

    def touch() -> bool:
        return runtime.database.run(lambda session: touch_worker(session, worker.id, cache_keys=keys))

    try:
        if not touch():
            runtime.database.run(lambda session: register_worker(session, worker))
        elif runtime.database.run(lambda session: is_draining(session, worker.id)):
            return None
        claim = runtime.database.run_alone(
            lambda session: claim_cycle(
                session,
                worker_id=worker.id,
                resource_class=worker.resource_class,
                lease_s=runtime.settings.lease_s,
                celery_task_id=celery_task_id,
                rules=QueueRules.of(runtime.settings),
            )
        )
        if claim is not None:
            touch()  # its commit waits for the disk, and so makes the claim before it last
        return claim
    except Unavailable as error:
        log.warning("claim_failed", error=error.message)
        return None
