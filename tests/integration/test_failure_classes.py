"""What follows from each class of failure, and that state, events and metrics say so."""

import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from dmsae.config import DistillationConfig
from dmsae.errors import FAILURES, OUTAGES
from dmsae.service.claims import Claim, claim_cycle
from dmsae.service.database import Database
from dmsae.service.jobs import view_job
from dmsae.service.recording import RetryPolicy, record_crash, record_hand_back
from dmsae.service.retrying import retry_job
from dmsae.service.tables import Cycle, Event, Job
from tests.planting import outcomes, plant_job, plant_worker
from tests.tiny import save_tiny_model, uncompiled_config
from tests.worker_bench import Bench
from worker.oom import count_oom_kills
from worker.runtime import TRAINER_COMMAND

OUT_OF_MEMORY_UNLESS_IN_PARTS = """
import sys
from dmsae import cycle
def run_out(*args, **kwargs):
    raise MemoryError
if "--parts" not in sys.argv:
    cycle._run = run_out
sys.exit(cycle.main())
"""


class Line:
    """One job whose attempts are recorded by hand."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.worker_id = database.run(lambda session: plant_worker(session, "cpu"))
        self.job_id = database.run(lambda session: plant_job(session, "cpu", n_cycles=1))

    def claim(self) -> Claim | None:
        """Claim its cycle, if that may be."""
        worker: dict[str, Any] = {"worker_id": self.worker_id, "resource_class": "cpu"}
        return self.database.run(lambda s: claim_cycle(s, **worker, lease_s=30, celery_task_id=None))

    def crash(self, code: str, *, policy: RetryPolicy) -> str:
        claim = self.claim()
        assert claim is not None
        return self.database.run(
            lambda s: record_crash(s, claim, code=code, message="It died.", policy=policy)
        )

    def cycle(self) -> Cycle:
        with self.database.session_scope() as session:
            return session.scalars(select(Cycle).where(Cycle.job_id == self.job_id)).one()

    def reason(self) -> str | None:
        with self.database.session_scope() as session:
            return view_job(session, self.job_id).state_reason

    def told(self, kind: str) -> list[dict[str, Any]]:
        with self.database.session_scope() as session:
            query = select(Event.data).where(Event.job_id == self.job_id, Event.kind == kind)
            return list(session.scalars(query.order_by(Event.seq)))

    def pass_backoff(self) -> None:
        with self.database.session_scope() as session:
            session.execute(update(Cycle).values(not_before=None))


@pytest.fixture
def line(database: Database) -> Line:
    return Line(database)


def plant_real(bench: Bench, folder: Path, **overrides: Any) -> None:
    """Plant a job of the real trainer, on a tiny model."""
    settings = uncompiled_config(save_tiny_model(folder / "model"), n_cycles=1, **overrides)
    config = DistillationConfig.model_validate(settings).model_dump(mode="json")
    bench.plant()
    with bench.database.session_scope() as session:
        session.execute(update(Job).where(Job.id == bench.job_id).values(config=config))
    bench.runtime.settings = bench.runtime.settings.model_copy(update={"allowed_roots": [folder]})
    bench.runtime.command = TRAINER_COMMAND


# ---- the request's fault, or our code's


@pytest.mark.parametrize("code", ["model_not_found", "non_finite", "internal_error"])
def test_the_requests_or_our_fault_fails_at_once_and_nothing_tries_again(bench: Bench, code: str) -> None:
    bench.plant("fail", code=code)
    assert [bench.run(), bench.run()] == ["failed", None]
    with bench.database.session_scope() as session:
        job = session.get_one(Job, bench.job_id)
        assert (job.state, job.state_reason) == ("failed", "It cannot work.")
        assert job.error is not None
        assert (job.error["code"], job.error["retryable"]) == (code, False)
        told = {event.kind: event.data for event in session.scalars(select(Event))}
    assert (told["cycle_failed"]["code"], told["job_failed"]["code"]) == (code, code)
    assert "attempt_crashed" not in told


def test_a_real_trainer_past_its_time_limit_is_ended_and_its_job_says_so(
    bench: Bench, tmp_path: Path
) -> None:
    plant_real(bench, tmp_path, time_limit_s=1)
    assert [bench.run(), bench.run()] == ["failed", None]
    error = bench.error()
    assert (error["code"], error["param"], error["retryable"]) == ("timed_out", "time_limit_s", False)
    with bench.database.session_scope() as session:
        assert "time_limit_s = 1" in str(session.get_one(Job, bench.job_id).state_reason)


# ---- what the machine, the store or the hub lacked


@pytest.mark.parametrize("code", ["hub_rate_limited", "hub_unreachable", "device_unavailable"])
def test_what_the_host_or_the_hub_lacks_is_tried_again(bench: Bench, tmp_path: Path, code: str) -> None:
    bench.plant("fail", code=code, once=str(tmp_path / "once"))
    assert [bench.run(), bench.run()] == ["crashed", "succeeded"]
    assert bench.states() == ("succeeded", ["succeeded"], ["crashed", "succeeded"])
    error = bench.database.run(
        lambda s: s.scalars(select(Event.data).where(Event.kind == "attempt_crashed")).one()
    )
    assert error == {"code": code, "n_failed": 1}


def test_outages_are_all_tried_again_and_every_failure_has_a_class() -> None:
    assert {code for code in OUTAGES if not FAILURES[code]} == set()
    never = {"out_of_memory", "timed_out", "non_finite", "spec_unsupported", "internal_error"}
    assert {code for code in never if FAILURES[code]} == set()


def test_the_wait_before_the_next_attempt_stands_in_postgres_and_grows_with_each(line: Line) -> None:
    policy = RetryPolicy(max_attempts=9, backoff_s=10)
    waits = []
    for code in ("crashed", "crashed", "store_unavailable"):
        line.crash(code, policy=policy)
        assert line.claim() is None
        cycle = line.cycle()
        assert cycle.not_before is not None
        reason = line.reason()
        assert reason is not None
        assert f"broke off ({code}): It died. The next one begins after" in reason
        with line.database.session_scope() as session:
            wait = session.scalars(
                select(Cycle.not_before - Event.created_at)
                .join(Event, Event.job_id == Cycle.job_id)
                .where(Event.kind == "attempt_crashed")
                .order_by(Event.seq.desc())
            ).first()
        assert wait is not None
        waits.append(round(wait.total_seconds()))
        line.pass_backoff()
    assert waits == [10, 20, 400]


def test_no_wait_is_longer_than_an_hour() -> None:
    policy = RetryPolicy(max_attempts=10_000, backoff_s=1)
    assert policy.wait_s("crashed", n_failed=9999) == 3600
    assert RetryPolicy(3, 0.0).wait_s("disk_full", n_failed=3) == 0


def test_hand_backs_never_count_and_an_outage_counts_once_each(line: Line) -> None:
    policy = RetryPolicy(max_attempts=3, backoff_s=0)
    for n_failed in (1, 2):
        assert line.crash("store_unavailable", policy=policy) == "crashed"
        claim = line.claim()
        assert claim is not None
        line.database.run(lambda s, claim=claim: record_hand_back(s, claim, reason="The worker stops."))
        assert line.cycle().n_failed_attempts == n_failed
    assert line.crash("store_unavailable", policy=policy) == "crashed"
    with line.database.session_scope() as session:
        error = session.get_one(Job, line.job_id).error
        assert outcomes(session, line.job_id) == ["crashed", "handed_back"] * 2 + ["crashed"]
    assert error is not None
    assert (error["code"], error["cause"]) == ("attempts_exhausted", "store_unavailable")
    assert "All 3 attempts broke off" in error["message"]


def test_a_retry_by_request_goes_on_from_the_checkpoint_of_the_cycle_that_failed(bench: Bench) -> None:
    bench.runtime.settings = bench.runtime.settings.model_copy(update={"max_attempts": 1})
    bench.plant(n_steps=10, every=4, die_after=5)
    assert bench.run() == "crashed"
    assert bench.error()["code"] == "attempts_exhausted"
    assert bench.error()["retryable"]
    bench.database.run(lambda session: retry_job(session, bench.job_id))
    bench.configure(fake={"n_steps": 10})
    assert bench.run() == "succeeded"
    with bench.database.session_scope() as session:
        resumed = session.scalars(select(Event.data).where(Event.kind == "resumed")).all()
    assert resumed == [{"step": 4}]
    assert bench.states() == ("succeeded", ["succeeded"], ["crashed", "succeeded"])


# ---- out of memory


def test_out_of_memory_is_tried_once_in_parts_whatever_broke_off_before(line: Line) -> None:
    policy = RetryPolicy(max_attempts=2, backoff_s=60)
    line.crash("crashed", policy=policy)
    line.pass_backoff()
    assert line.crash("out_of_memory", policy=policy) == "crashed"
    assert (line.cycle().n_failed_attempts, line.cycle().not_before) == (1, None)
    assert "computes batches in parts" in str(line.cycle().state_reason)
    assert line.told("attempt_crashed")[1] == {"code": "out_of_memory", "next": "computed_in_parts"}
    claim = line.claim()
    assert claim is not None
    assert claim.n_parts > 1
    line.database.run(lambda s: record_hand_back(s, claim, reason="The worker stops."))
    assert line.crash("out_of_memory", policy=policy) == "failed"
    with line.database.session_scope() as session:
        job = session.get_one(Job, line.job_id)
        assert job.error is not None
        assert (job.state, job.error["code"]) == ("failed", "out_of_memory")


def test_a_trainer_that_the_kernel_killed_for_memory_is_tried_in_parts(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([7, 8, 8])
    monkeypatch.setattr("worker.supervisor.count_oom_kills", lambda: next(counts))
    bench.plant("crash", once=str(tmp_path / "once"))
    assert [bench.run(), bench.run()] == ["crashed", "succeeded"]
    with bench.database.session_scope() as session:
        told = session.scalars(select(Event.data).where(Event.kind == "attempt_crashed")).all()
        parts = session.scalars(select(Event.data).where(Event.kind == "computed_in_parts")).all()
    assert told == [{"code": "out_of_memory", "next": "computed_in_parts"}]
    assert parts == [{"n_parts": 2}]


def test_the_kernels_counts_are_read_where_there_are_any(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 3\nthp_fault_alloc 9\n")
    (tmp_path / "memory.events").write_text("low 0\noom 4\noom_kill 2\noom_group_kill 1\n")
    (tmp_path / "other").write_text("oom_kill many\n")
    names = ("vmstat", "memory.events", "other", "none")
    assert count_oom_kills([tmp_path / name for name in names]) == 5


def test_a_real_trainer_that_ran_out_of_memory_succeeds_in_parts_and_says_so(
    bench: Bench, tmp_path: Path
) -> None:
    plant_real(bench, tmp_path, training={"n_tokens": 2048})
    bench.runtime.settings = bench.runtime.settings.model_copy(update={"max_attempts": 1})
    bench.runtime.command = (sys.executable, "-c", OUT_OF_MEMORY_UNLESS_IN_PARTS)
    assert [bench.run(), bench.run()] == ["crashed", "succeeded"]
    with bench.database.session_scope() as session:
        (metrics,) = session.scalars(select(Cycle.metrics).where(Cycle.job_id == bench.job_id))
        rows = session.execute(select(Event.kind, Event.data).where(Event.job_id == bench.job_id))
        told = {row.kind: row.data for row in rows}
    assert metrics is not None
    assert metrics["n_parts"] == 2
    assert told["computed_in_parts"]["n_parts"] == 2
