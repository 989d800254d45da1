"""One attempt from claim to record: prepare, train, upload, record.

The trainer trains; here it is started, watched and ended, and what became of it is recorded in one
transaction. While Postgres is away the record waits for it; a stale attempt records nothing.
"""

import errno
import shutil
import signal
import time
from dataclasses import dataclass

import structlog

from dmsae.errors import FAILURES, CycleFailed, DatabaseRefused, NotFound, StaleAttempt, Unavailable
from dmsae.probe_config import is_probe
from dmsae.service.claims import Claim, StoredFile
from dmsae.service.database import Transaction, UseCase
from dmsae.service.fitting import say_what_fits
from dmsae.service.leases import Report, renew
from dmsae.service.recording import (
    RetryPolicy,
    record_cancelled,
    record_crash,
    record_failure,
    record_hand_back,
    record_success,
)
from dmsae.service.results import TrainerResult, read_probe, read_result
from worker.checkpoints import CheckpointUnusable, CheckpointUploads, fetch_checkpoint
from worker.device_lock import DeviceLock
from worker.draining import Grace
from worker.heartbeat import Heartbeat
from worker.object_inputs import ObjectInputs
from worker.oom import count_oom_kills
from worker.patient_store import PatientStore
from worker.protocol import DoneMessage, FailedMessage
from worker.redacting import make_redactor
from worker.runtime import Runtime
from worker.trainer import Trainer, describe_exit
from worker.trainer_output import TrainerOutput
from worker.work_folder import WorkFolder, check_paths

log = structlog.get_logger()

WATCH_S = 0.1
EXIT_PATIENCE_S = 10.0
"""How long a trainer may take to exit after its last line."""
RECORD_PATIENCE_S = 1.0
NOT_GONE_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended: the outcome to record, with a failure's code and sentence."""

    kind: str
    """succeeded, failed, crashed, handed_back, cancelled or stale."""
    code: str = ""
    message: str = ""
    param: str | None = None


class Supervisor:
    """Runs one claimed attempt; use it once."""

    def __init__(self, runtime: Runtime, claim: Claim, lock: DeviceLock) -> None:
        self._runtime = runtime
        self._settings = runtime.settings
        self._claim = claim
        self._lock = lock
        self._folder = WorkFolder(runtime.settings.work_dir, runtime.worker.slot)
        self._grace = Grace(runtime.draining, runtime.settings.drain_grace_s)
        self._objects = PatientStore(
            runtime.objects,
            patience_s=runtime.settings.store_patience_s,
            has_stopped=lambda: self._is_over,
            tell=lambda error: self._output.add_event("store_unavailable", error.message, {}),
        )
        self._uploads = CheckpointUploads(
            claim,
            self._objects,
            folder=self._folder.checkpoints,
            tell=lambda stored: self._output.add_checkpoint(stored),
            has_stopped=lambda: self._is_lost,
        )
        redact = make_redactor(runtime.settings)
        self._output = TrainerOutput(redact, on_checkpoint=self._uploads.offer)
        self._inputs = ObjectInputs(runtime.settings.cache_dir, runtime.worker.id)
        self._last_report = Report()
        self._n_oom_kills = 0
        self._heartbeat = Heartbeat(
            runtime.settings, claim, self._output, gives_up=lambda: self._grace.is_over
        )

    def run(self) -> str:
        """Carry the attempt through; when this returns no process of it is left. Gives its outcome."""
        log.info("attempt_began", fence=self._claim.fence)
        artifacts: tuple[StoredFile, ...] = ()
        result: TrainerResult | None = None
        try:
            with self._heartbeat, self._runtime.objects.broken_off_when(lambda: self._is_over):
                verdict = self._prepare() or self._train()
                if verdict.kind == "succeeded":
                    verdict, artifacts, result = self._collect()
                is_needed = verdict.kind == "crashed"
                self._uploads.close(patience_s=self._settings.drain_grace_s if is_needed else 0)
            outcome = self._record(verdict, artifacts, result)
        finally:
            self._folder.clear()
            self._inputs.release()
        if verdict.code == "disk_full":
            self._runtime.disk.rest(self._settings)
        log.info("attempt_ended", outcome=outcome, code=verdict.code or None)
        return outcome

    def _prepare(self) -> Verdict | None:
        try:
            check_paths(self._claim.spec, self._settings.allowed_roots)
            self._settings.cache_dir.mkdir(parents=True, exist_ok=True)
            self._folder.prepare(self._claim, self._objects)
            self._fetch_checkpoint()
            self._inputs.fetch(self._claim.spec, self._objects, has_stopped=lambda: self._has_stopped)
        except (CycleFailed, NotFound, Unavailable, OSError) as error:
            return self._verdict_on(error)
        return None

    def _fetch_checkpoint(self) -> None:
        """Fetch what the attempt goes on from, if there is anything; one that is spoilt is told and left."""
        point = self._claim.checkpoint
        if point is None:
            return
        try:
            fetch_checkpoint(point, self._folder.resume, self._objects)
        except CheckpointUnusable as error:
            shutil.rmtree(self._folder.resume)
            reason = error.message
            self._output.add_event(
                "checkpoint_refused",
                f"The checkpoint after step {point.step}, of attempt {point.attempt_number}, cannot be used: "
                f"{reason}. The cycle begins anew.",
                {"step": point.step, "reason": reason},
            )

    def _train(self) -> Verdict:
        if (reason := self._reason_to_stop()) is not None:
            return reason
        arguments = self._folder.arguments(self._claim, self._settings, inputs=self._inputs.folder)
        self._n_oom_kills = count_oom_kills()
        try:
            trainer = Trainer(
                [*self._runtime.command, *arguments],
                folder=self._folder.path,
                lock_fd=self._lock.fd,
                output=self._output,
                visible_devices=self._runtime.visible_devices,
            )
        except OSError as error:
            return Verdict("crashed", "crashed", f"The trainer could not be started: {error.strerror}.")
        try:
            self._lock.name_trainer(trainer.pid)
            log.info("trainer_started", pid=trainer.pid)
            verdict = self._watch(trainer)
        except OSError as error:
            verdict = _verdict_of(error)
        finally:
            self._end(trainer)
        is_left = verdict is not None and verdict.kind == "handed_back" and self._output.ending is not None
        return self._judge(trainer) if verdict is None or is_left else verdict

    def _watch(self, trainer: Trainer) -> Verdict | None:
        """Wait until the trainer ends by itself (None), or there is a reason to end it."""
        limit_s = self._claim.time_limit_s
        begun = time.monotonic()
        said_last: float | None = None
        while trainer.exit_status() is None:
            now = time.monotonic()
            if (reason := self._reason_to_stop()) is not None:
                if reason.kind == "handed_back":
                    self._take_leave(trainer)
                return self._reason_to_stop()
            if limit_s is not None and now - begun > limit_s:
                message = f"The cycle ran longer than time_limit_s = {limit_s} seconds."
                return Verdict("failed", "timed_out", message, "time_limit_s")
            said_last = said_last or (now if self._output.ending else None)
            if said_last is not None and now - said_last > EXIT_PATIENCE_S:
                return None
            self._heartbeat.changed.wait(WATCH_S)
        return None

    def _take_leave(self, trainer: Trainer) -> None:
        """Within the grace of a drain, have the SAE as it stands stored, or the trainer say its last line."""
        written_before = self._uploads.newest_step
        is_training = self._output.last_phase == "training"
        if is_training:
            trainer.ask_for_checkpoint()
        while trainer.exit_status() is None and not self._output.ending and not self._is_over:
            if self._uploads.stored_step > written_before or (not is_training and self._uploads.is_idle):
                return
            time.sleep(WATCH_S)

    @property
    def _is_lost(self) -> bool:
        return self._heartbeat.is_stale or self._heartbeat.is_cancelling

    @property
    def _is_over(self) -> bool:
        """Whether what is under way in the store is to be broken off."""
        return self._is_lost or self._grace.is_over or self._uploads.is_abandoned

    def _reason_to_stop(self) -> Verdict | None:
        if self._heartbeat.is_stale:
            return Verdict("stale")
        if self._heartbeat.is_cancelling:
            return Verdict("cancelled")
        if self._runtime.draining.is_set():
            return Verdict("handed_back", message="The worker stops; the cycle goes back to the queue.")
        return None

    @property
    def _has_stopped(self) -> bool:
        return self._reason_to_stop() is not None

    def _end(self, trainer: Trainer) -> None:
        """End the trainer's group, however long it takes: nothing may be recorded or claimed before."""
        while not trainer.stop(grace_s=self._settings.kill_grace_s):
            log.error("trainer_does_not_die", pid=trainer.pid)
            time.sleep(NOT_GONE_PATIENCE_S)

    def _judge(self, trainer: Trainer) -> Verdict:
        """Say what a trainer that ended by itself achieved."""
        match self._output.ending:
            case DoneMessage():
                return Verdict("succeeded")
            case FailedMessage(code=code, message=message, param=param):
                known = code if code in FAILURES else "internal_error"
                return self._failed(known, self._output.redacted(message), param)
        status = trainer.exit_status()
        if status == -signal.SIGKILL and count_oom_kills() > self._n_oom_kills:
            told = "The trainer was killed by the kernel: the machine ran out of memory."
            return self._failed("out_of_memory", told, None)
        return Verdict("crashed", "crashed", describe_exit(0 if status is None else status))

    def _failed(self, code: str, told: str, param: str | None) -> Verdict:
        """Say whether a failure is tried again: what others may do better, and memory once, in parts."""
        may_help = FAILURES[code]
        if code == "out_of_memory":
            may_help = self._claim.n_parts == 1
            told += " " + self._say_what_fits()
        return Verdict("crashed" if may_help else "failed", code, told, param)

    def _say_what_fits(self) -> str:
        settings, memory_bytes = self._settings, self._runtime.worker.memory_bytes
        return say_what_fits(self._claim.spec, memory_bytes, settings.allowed_roots)

    def _collect(self) -> tuple[Verdict, tuple[StoredFile, ...], TrainerResult | None]:
        """Read the results and store all files; a worker that is to end does so within its grace."""
        self._output.set_phase("uploading")
        started = time.monotonic()
        try:
            result = self._read_result()
            artifacts = self._folder.upload(self._claim, self._objects, has_stopped=lambda: self._is_over)
        except (CycleFailed, NotFound, Unavailable, OSError) as error:
            return self._verdict_on(error), (), None
        if not artifacts:
            return self._reason_to_stop() or Verdict("handed_back"), (), None
        timed = result.with_phase("uploading", seconds=time.monotonic() - started)
        return Verdict("succeeded"), artifacts, timed

    def _read_result(self) -> TrainerResult:
        config = self._claim.spec["config"]
        if is_probe(config):
            return read_probe(self._folder.out)
        return read_result(self._folder.out, is_match="cores" in config)

    def _verdict_on(self, error: CycleFailed | NotFound | Unavailable | OSError) -> Verdict:
        """Say how an error ends the attempt: what was broken off because it had to stop is no crash."""
        reason = self._reason_to_stop() if isinstance(error, Unavailable) else None
        return reason or _verdict_of(error)

    def _record(
        self, verdict: Verdict, artifacts: tuple[StoredFile, ...], result: TrainerResult | None
    ) -> str:
        if verdict.kind == "stale":
            return "stale"
        self._last_report = self._output.take_report()
        recording = self._recording(verdict, artifacts, result)
        while True:
            try:
                return self._runtime.database.run(recording)
            except StaleAttempt:
                return "stale"
            except CycleFailed as error:
                verdict = _verdict_of(error)
                log.error("result_refused", error=error.message)
                recording = self._recording(verdict, (), None)
            except DatabaseRefused as error:
                if verdict.code == "internal_error":
                    raise
                log.error("record_refused", kind=error.fields["kind"])
                verdict = Verdict("failed", "internal_error", "The database refused the cycle's results.")
                recording = self._recording(verdict, (), None)
            except Unavailable:
                if self._grace.is_over:
                    log.warning("attempt_left_open")
                    return "unrecorded"
                log.warning("record_waits_for_database")
                time.sleep(RECORD_PATIENCE_S)

    def _recording(
        self, verdict: Verdict, artifacts: tuple[StoredFile, ...], result: TrainerResult | None
    ) -> UseCase[str]:
        """Give the transaction that stores the last report and the outcome."""
        claim, settings, report = self._claim, self._settings, self._last_report
        policy = RetryPolicy(
            settings.max_attempts, settings.retry_backoff_s, max_in_all=settings.max_attempts_in_all
        )
        code, message = verdict.code, verdict.message

        def recording(session: Transaction) -> str:
            renew(session, claim, lease_s=settings.lease_s, report=report)
            match verdict.kind:
                case "succeeded" if result is not None:
                    return record_success(session, claim, artifacts=artifacts, result=result)
                case "failed":
                    return record_failure(session, claim, code=code, message=message, param=verdict.param)
                case "cancelled":
                    return record_cancelled(session, claim, confirmed_by="supervisor")
                case "handed_back":
                    return record_hand_back(session, claim, reason=message)
            return record_crash(session, claim, code=code or "crashed", message=message, policy=policy)

        return recording


def _verdict_of(error: CycleFailed | NotFound | Unavailable | OSError) -> Verdict:
    match error:
        case CycleFailed():
            kind = "crashed" if error.is_retryable else "failed"
            return Verdict(kind, error.failure, error.message, error.param)
        case Unavailable() | NotFound():
            return Verdict("crashed", "store_unavailable", error.message)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Verdict("crashed", "disk_full", "The disk of this worker's machine is full.")
    return Verdict("crashed", "crashed", f"The worker cannot use its work folder: {error.strerror}.")
