"""What does a finished, failed, crashed or handed-back attempt change?

Each function is one transaction, refused as a whole if the attempt is not the open one any more. Where the
job is being cancelled every outcome becomes `cancelled`. Of failures there are classes: the request's fault
or our code's ends the job (`record_failure`), and so does a time limit; what the machine, the store or the
hub lacked is tried again (`record_crash`), counted, later each time; out of memory is tried once more, in
parts of a batch.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from dmsae.errors import FAILURES, OUTAGES
from dmsae.service.checkpoints import supersede_checkpoints
from dmsae.service.claims import Claim, StoredFile
from dmsae.service.code_version import code_version
from dmsae.service.database import wake_after_commit
from dmsae.service.given_rows import write_given
from dmsae.service.lineage_rows import write_core
from dmsae.service.match_rows import write_matches, write_probe_matches
from dmsae.service.matches import describe_match, queue_match
from dmsae.service.plain_json import plain_text
from dmsae.service.results import MatchResult, ProbeResult, TrainerResult
from dmsae.service.states import (
    Held,
    close_attempt,
    end_unstarted_cycles,
    lock_attempt,
    move_cycle,
    move_job,
    tell,
)
from dmsae.service.tables import Artifact, Attempt, Cycle

ConfirmedBy = Literal["supervisor", "lease"]

MESSAGE_CHARS = 2000
SAYS = {
    "logit_lens": "The logit lens was read off.",
    "match": "The core was compared.",
    "prompt": "The prompt was read.",
}
"""What the event of a finished probe says."""
LONGEST_BACKOFF_S = 3600.0
OUTAGE_BACKOFF = 10
"""How much longer the next attempt waits where something must come back first."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often a cycle is tried, and how long it waits in between."""

    max_attempts: int
    backoff_s: float
    """Before the second attempt; doubled with each further one, tenfold after one of `OUTAGES`."""
    max_in_all: int = 100
    """Attempts that may break off in all, though checkpoints got further in between."""

    def wait_s(self, code: str, *, n_failed: int) -> float:
        """Give how long a cycle waits after so many attempts that broke off, the last with `code`."""
        first_s = self.backoff_s * (OUTAGE_BACKOFF if code in OUTAGES else 1)
        return min(first_s * 2.0 ** min(n_failed - 1, 32), LONGEST_BACKOFF_S)


def record_success(
    session: Session, claim: Claim, *, artifacts: tuple[StoredFile, ...], result: TrainerResult
) -> str:
    """Record a finished cycle: core, lineage, artifacts, metrics; queue the next cycle or end the job.

    A match or a probe has neither core nor lineage: what it found stands among its metrics.

    Gives the outcome of the attempt: `cancelled` where the job was being cancelled.

    Raises:
        StaleAttempt: another attempt took its place; nothing is recorded.
        CycleFailed: the lineage is wrong; nothing is recorded.
    """
    job = lock_attempt(session, claim)
    if job.state == "cancelling":
        _cancel(session, claim, confirmed_by="supervisor")
        return "cancelled"
    if isinstance(result, MatchResult | ProbeResult):
        return _record_answer(session, claim, artifacts, result)
    given_id = write_given(session, claim, result) or claim.input_core_id
    core_id = write_core(session, claim, result, input_core_id=given_id, seed=job.config.get("seed"))
    _write_artifacts(session, claim, artifacts)
    supersede_checkpoints(session, claim.cycle_id)
    close_attempt(session, claim, "succeeded")
    cores = {"input_core_id": given_id, "output_core_id": core_id, "code_version": code_version()}
    move_cycle(session, claim.cycle_id, "succeeded", metrics=result.metrics, **cores)
    n_new = sum(entry.parent_core_index is None for entry in result.lineage.core)
    n_core, n_dropped = len(result.lineage.core), len(result.lineage.dropped)
    message = f"Cycle {claim.cycle_index} selected {n_core} latents: {n_new} new, {n_dropped} dropped."
    data = {"core_id": core_id, "n_core": n_core, "n_new": n_new, "n_dropped": n_dropped}
    tell(session, claim, "cycle_succeeded", message, data=data)
    _go_on(session, claim, core_id, config=job.config)
    return "succeeded"


def _record_answer(
    session: Session, claim: Claim, artifacts: tuple[StoredFile, ...], result: MatchResult | ProbeResult
) -> str:
    _write_artifacts(session, claim, artifacts)
    if isinstance(result, MatchResult):
        write_matches(session, claim, result.match)
        found = {"match": describe_match(result.match)}
        done, end = f"The cores of {len(result.match.cores)} chains were compared.", "The match is done."
    else:
        write_probe_matches(session, claim, result.probe)
        found = {"result": result.probe.shown()}
        done, end = SAYS[result.probe.kind], "The probe is done."
    close_attempt(session, claim, "succeeded")
    metrics = {**result.metrics, **found}
    move_cycle(session, claim.cycle_id, "succeeded", metrics=metrics, code_version=code_version())
    tell(session, claim, "cycle_succeeded", done)
    move_job(session, claim.job_id, "succeeded")
    tell(session, claim, "job_succeeded", end)
    return "succeeded"


def record_failure(session: Session, held: Held, *, code: str, message: str, param: str | None = None) -> str:
    """Record that a cycle failed for good, and its job with it; give the outcome of the attempt.

    Raises:
        StaleAttempt: another attempt took its place; nothing is recorded.
    """
    job = lock_attempt(session, held)
    if job.state == "cancelling":
        _cancel(session, held, confirmed_by="supervisor")
        return "cancelled"
    _fail(session, held, error=_error(code, message, param), outcome="failed")
    return "failed"


def record_crash(session: Session, held: Held, *, code: str, message: str, policy: RetryPolicy) -> str:
    """Record that an attempt broke off without an answer: queue its cycle again, or fail it after too many.

    `code` is one of the retryable ones of `FAILURES`; after too many it stands as the error's `cause`. Out of
    memory counts for itself: once it is tried again, in parts of a batch, whatever else broke off before.
    Gives the outcome of the attempt.

    Raises:
        StaleAttempt: another attempt took its place; nothing is recorded.
    """
    job = lock_attempt(session, held)
    if job.state == "cancelling":
        _cancel(session, held, confirmed_by="lease" if code == "lease_expired" else "supervisor")
        return "cancelled"
    error = _error(code, message, None)
    if code == "out_of_memory":
        return _try_in_parts(session, held, error)
    n_failed, n_in_all = _count_crash(session, held.cycle_id)
    tell(session, held, "attempt_crashed", error["message"], data={"code": code, "n_failed": n_failed})
    if n_failed >= policy.max_attempts or n_in_all >= policy.max_in_all:
        many = f"All {n_failed} attempts" if n_in_all == n_failed else f"{n_in_all} attempts in all"
        told = f"{many} broke off; the last: {message}"
        exhausted = {**_error("attempts_exhausted", told, None), "cause": code}
        _fail(session, held, error=exhausted, outcome="crashed")
        return "crashed"
    close_attempt(session, held, "crashed", error=error)
    reason = f"Attempt {held.attempt_number} broke off ({code}): {message}"
    wait = timedelta(seconds=policy.wait_s(code, n_failed=n_failed))
    _queue_again(session, held, reason=reason, wait=wait)
    return "crashed"


def record_hand_back(session: Session, held: Held, *, reason: str) -> str:
    """Queue the cycle of an attempt that its worker gave up, not counted as failed; give the outcome.

    Raises:
        StaleAttempt: another attempt took its place; nothing is recorded.
    """
    job = lock_attempt(session, held)
    if job.state == "cancelling":
        _cancel(session, held, confirmed_by="supervisor")
        return "cancelled"
    close_attempt(session, held, "handed_back")
    tell(session, held, "attempt_handed_back", reason)
    _queue_again(session, held, reason=reason, wait=None)
    return "handed_back"


def record_cancelled(session: Session, held: Held, *, confirmed_by: ConfirmedBy) -> str:
    """Record that the attempt of a job that is being cancelled has ended; give the outcome.

    Raises:
        StaleAttempt: another attempt took its place; nothing is recorded.
    """
    lock_attempt(session, held)
    _cancel(session, held, confirmed_by=confirmed_by)
    return "cancelled"


def _cancel(session: Session, held: Held, *, confirmed_by: ConfirmedBy) -> None:
    close_attempt(session, held, "cancelled")
    reason = "The job was cancelled."
    move_cycle(session, held.cycle_id, "cancelled", state_reason=reason)
    end_unstarted_cycles(session, held.job_id, reason=reason)
    move_job(session, held.job_id, "cancelled")
    how = {
        "supervisor": "Cancelled: the supervisor confirmed that the trainer is gone.",
        "lease": "Cancelled: the attempt's lease ran out, and its number is fenced off.",
    }
    tell(session, held, "job_cancelled", how[confirmed_by], data={"confirmed_by": confirmed_by})


def _fail(session: Session, held: Held, *, error: dict[str, Any], outcome: str) -> None:
    close_attempt(session, held, outcome, error=error)
    move_cycle(session, held.cycle_id, "failed", error=error, state_reason=error["message"])
    reason = f"Cycle {held.cycle_index} failed."
    end_unstarted_cycles(session, held.job_id, reason=reason)
    tell(session, held, "cycle_failed", error["message"], data=error)
    move_job(session, held.job_id, "failed", reason=error["message"], error=error)
    tell(session, held, "job_failed", reason, data={"code": error["code"]})


def _try_in_parts(session: Session, held: Held, error: dict[str, Any]) -> str:
    """Queue the cycle of an attempt that ran out of memory, or fail it where another one had before."""
    before = select(Attempt.id).where(Attempt.cycle_id == held.cycle_id, Attempt.id != held.attempt_id)
    if session.scalar(before.where(Attempt.error["code"].astext == error["code"]).limit(1)) is not None:
        _fail(session, held, error=error, outcome="failed")
        return "failed"
    data = {"code": error["code"], "next": "computed_in_parts"}
    tell(session, held, "attempt_crashed", error["message"], data=data)
    close_attempt(session, held, "crashed", error=error)
    reason = f"Attempt {held.attempt_number} ran out of memory; the next one computes batches in parts."
    _queue_again(session, held, reason=reason, wait=None)
    return "crashed"


def _count_crash(session: Session, cycle_id: str) -> tuple[int, int]:
    """Count one more attempt that broke off; give how many since a checkpoint, and in this run of the job."""
    counted = session.execute(
        update(Cycle)
        .where(Cycle.id == cycle_id)
        .values(
            n_failed_attempts=Cycle.n_failed_attempts + 1, n_crashed_attempts=Cycle.n_crashed_attempts + 1
        )
        .returning(Cycle.n_failed_attempts, Cycle.n_crashed_attempts)
        .execution_options(synchronize_session=False)
    ).one()
    return counted.n_failed_attempts, counted.n_crashed_attempts


def _error(code: str, message: str, param: str | None) -> dict[str, Any]:
    text = plain_text(message)[:MESSAGE_CHARS]
    return {"code": code, "message": text, "param": param, "retryable": FAILURES.get(code, False)}


def _queue_again(session: Session, held: Held, *, reason: str, wait: timedelta | None) -> None:
    not_before = None if not wait else func.now() + wait
    text = plain_text(reason)[:MESSAGE_CHARS]
    move_cycle(session, held.cycle_id, "queued", not_before=not_before, state_reason=text)
    wake_after_commit(session, held.resource_class)


def _write_artifacts(session: Session, claim: Claim, artifacts: tuple[StoredFile, ...]) -> None:
    for file in artifacts:
        session.execute(
            insert(Artifact).values(
                job_id=claim.job_id,
                cycle_id=claim.cycle_id,
                attempt_id=claim.attempt_id,
                object_key=file.object_key,
                name=file.name,
                size_bytes=file.size_bytes,
                sha256=file.sha256,
            )
        )


def _go_on(session: Session, claim: Claim, core_id: str, *, config: dict[str, Any]) -> None:
    """Queue the next cycle, or end the job: all cycles are done, or the core has settled."""
    following = session.execute(
        select(Cycle.id, Cycle.resource_class)
        .where(Cycle.job_id == claim.job_id, Cycle.index == claim.cycle_index + 1, Cycle.state == "waiting")
        .with_for_update(key_share=True)
    ).one_or_none()
    if following is None:
        move_job(session, claim.job_id, "succeeded")
        tell(session, claim, "job_succeeded", "All cycles are done.")
        queue_match(session, claim)
    elif _is_converged(session, claim, config):
        end_unstarted_cycles(session, claim.job_id, reason="The core converged before this cycle.")
        move_job(session, claim.job_id, "succeeded", reason="converged")
        message = f"The core converged after cycle {claim.cycle_index}: later cycles are skipped."
        tell(session, claim, "job_succeeded", message, data={"reason": "converged"})
        queue_match(session, claim)
    else:
        move_cycle(session, following.id, "queued", input_core_id=core_id, queued_at=func.now())
        tell(session, claim, "cycle_queued", f"Cycle {claim.cycle_index + 1} waits for a worker.")
        wake_after_commit(session, following.resource_class)


def _is_converged(session: Session, claim: Claim, config: dict[str, Any]) -> bool:
    tolerance = config.get("selection", {}).get("convergence_tolerance")
    if tolerance is None or claim.cycle_index < 2:
        return False
    changes = session.scalars(
        select(Cycle.metrics["core_change"])
        .where(Cycle.job_id == claim.job_id)
        .where(Cycle.index.in_((claim.cycle_index - 1, claim.cycle_index)))
    ).all()
    return len(changes) == 2 and all(
        isinstance(change, int | float) and change <= tolerance for change in changes
    )
