"""Checkpoints on their way: stored, recorded, gone on from, and deleted once nobody needs them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from dmsae.errors import NotFound, StaleAttempt
from dmsae.service.checkpoints import StoredCheckpoint, newest_checkpoint
from dmsae.service.deleting import delete_job
from dmsae.service.leases import Report, renew
from dmsae.service.recording import RetryPolicy, record_crash, record_hand_back
from dmsae.service.tables import Artifact, Attempt, Checkpoint, Cycle, Event, Job, MetricPoint
from tests.finished import claim_of
from tests.planting import plant_job, plant_worker
from tests.worker_bench import Bench, wait_for
from worker.cleaner import DAY_S, Cleaner

TWO_DAYS_AGO = func.clock_timestamp() - func.make_interval(0, 0, 0, 2)


@pytest.fixture
def cleaner(bench: Bench) -> Iterator[Cleaner]:
    cleaner = Cleaner(bench.runtime.settings, bench.database, bench.runtime.objects, batch=2)
    yield cleaner
    cleaner.resign()


def clean_up(cleaner: Cleaner) -> None:
    cleaner._purged_at = -DAY_S
    for _ in range(100):
        if not cleaner.do_part():
            return
    raise AssertionError("it never ends")


def events(bench: Bench, kind: str) -> list[dict[str, Any]]:
    with bench.database.session_scope() as session:
        query = select(Event.data).where(Event.job_id == bench.job_id, Event.kind == kind)
        return list(session.scalars(query.order_by(Event.seq)))


def checkpoints(bench: Bench, *, is_usable: bool = True) -> list[tuple[int, str]]:
    """Step and prefix of what may still be gone on from, or of what is to go."""
    with bench.database.session_scope() as session:
        is_whole = Checkpoint.superseded_at.is_(None)
        query = select(Checkpoint.step, Checkpoint.object_prefix).where(is_whole if is_usable else ~is_whole)
        return [tuple(row) for row in session.execute(query.order_by(Checkpoint.fence, Checkpoint.step))]


def is_stored(bench: Bench, prefix: str) -> bool:
    return bench.runtime.objects.find(f"{prefix}manifest.json") is not None


# ---- going on


def test_an_attempt_goes_on_where_the_one_before_left_off(bench: Bench, cleaner: Cleaner) -> None:
    bench.plant(n_steps=10, every=2, die_after=5)
    assert bench.run() == "crashed"
    left = checkpoints(bench)
    assert [step for step, _ in left] == [2, 4][-len(left) :]
    assert bench.run() == "crashed"
    assert bench.run() == "succeeded"
    assert [data["step"] for data in events(bench, "resumed")] == [4, 8]
    with bench.database.session_scope() as session:
        points = session.execute(select(MetricPoint.step, MetricPoint.fence).order_by(MetricPoint.step)).all()
        fences = session.scalars(select(Attempt.fence).order_by(Attempt.fence)).all()
    assert [point.step for point in points] == list(range(1, 11))
    of_attempts = [fences[0]] * 4 + [fences[1]] * 4 + [fences[2]] * 2
    assert [point.fence for point in points] == of_attempts
    assert checkpoints(bench) == []

    gone = [prefix for _, prefix in checkpoints(bench, is_usable=False)]
    assert gone
    clean_up(cleaner)
    assert not any(is_stored(bench, prefix) for prefix in gone)
    assert checkpoints(bench, is_usable=False) == []
    with bench.database.session_scope() as session:
        kept = session.scalars(select(Artifact.object_key)).all()
    assert all(bench.runtime.objects.find(key) is not None for key in kept)


def test_only_the_last_two_stay(bench: Bench) -> None:
    bench.plant(n_steps=20, every=1, die_after=8, seconds=6.0, before_death=1.0)
    assert bench.run() == "crashed"
    assert [step for step, _ in checkpoints(bench)] == [7, 8]
    assert all(is_stored(bench, prefix) for _, prefix in checkpoints(bench))


def test_attempts_that_get_further_may_break_off_more_often_than_others(bench: Bench) -> None:
    bench.plant(n_steps=10, every=2, die_after=2)
    outcomes = [bench.run() for _ in range(5)]
    assert outcomes == ["crashed"] * 4 + ["succeeded"]
    assert [data["n_failed"] for data in events(bench, "attempt_crashed")] == [1] * 4


def test_attempts_that_get_no_further_than_the_one_before_fail_in_the_end(bench: Bench) -> None:
    bench.plant(n_steps=10, every=4, die_after=5)
    assert bench.run() == "crashed"
    bench.configure(fake={"n_steps": 10, "every": 100, "die_after": 3})
    assert [bench.run() for _ in range(3)] == ["crashed", "crashed", None]
    assert [data["step"] for data in events(bench, "resumed")] == [4] * 2
    assert bench.states()[0] == "failed"
    assert bench.error()["code"] == "attempts_exhausted"


def test_even_with_checkpoints_there_is_an_end_to_it(bench: Bench) -> None:
    bench.runtime.settings = bench.runtime.settings.model_copy(update={"max_attempts_in_all": 3})
    bench.plant(n_steps=100, every=1, die_after=2)
    assert [bench.run() for _ in range(3)] == ["crashed"] * 3
    assert bench.states()[0] == "failed"
    assert bench.error()["code"] == "attempts_exhausted"
    assert "3 attempts in all" in bench.error()["message"]


def test_out_of_memory_is_tried_once_more_in_parts(bench: Bench, tmp_path: Path) -> None:
    bench.plant("fail", code="out_of_memory", once=str(tmp_path / "once"))
    assert [bench.run(), bench.run()] == ["crashed", "succeeded"]
    assert [data["code"] for data in events(bench, "attempt_crashed")] == ["out_of_memory"]
    assert events(bench, "computed_in_parts") == [{"n_parts": 2}]


def test_out_of_memory_in_parts_too_ends_the_cycle_under_its_code(bench: Bench) -> None:
    bench.plant("fail", code="out_of_memory")
    assert [bench.run(), bench.run(), bench.run()] == ["crashed", "failed", None]
    assert bench.error()["code"] == "out_of_memory"


# ---- leaving


def test_a_stopping_worker_leaves_a_checkpoint_from_which_another_goes_on(bench: Bench) -> None:
    bench.plant(n_steps=40, seconds=4.0)

    def stop() -> None:
        wait_for(lambda: bench.attempt().progress is not None)
        bench.runtime.draining.set()

    assert bench.run_meanwhile(stop) == "handed_back"
    ((step, _),) = checkpoints(bench)
    assert 0 < step < 40
    bench.runtime.draining.clear()
    assert bench.run() == "succeeded"
    assert events(bench, "resumed") == [{"step": step}]
    assert events(bench, "attempt_crashed") == []


def test_a_stopping_worker_waits_no_longer_than_its_grace(bench: Bench) -> None:
    bench.runtime.settings = bench.runtime.settings.model_copy(update={"drain_grace_s": 0.5})
    bench.plant(n_steps=2, seconds=60.0)

    def stop() -> None:
        wait_for(lambda: bench.attempt().phase == "training")
        bench.runtime.draining.set()

    begun = time.monotonic()
    assert bench.run_meanwhile(stop) == "handed_back"
    assert time.monotonic() - begun < 10
    assert checkpoints(bench) == []


# ---- what does not fit


def spoil_manifest(bench: Bench, prefix: str, folder: Path) -> None:
    (folder / "other").write_text('{"files": []}')
    bench.runtime.objects.put_file(f"{prefix}manifest.json", folder / "other")


def spoil_file(bench: Bench, prefix: str, folder: Path) -> None:
    (folder / "other").write_text("9")
    bench.runtime.objects.put_file(f"{prefix}steps.txt", folder / "other")


def lose_file(bench: Bench, prefix: str, folder: Path) -> None:  # noqa: ARG001
    bench.runtime.objects.delete(f"{prefix}steps.txt")


@pytest.mark.parametrize("spoil", [spoil_manifest, spoil_file, lose_file])
def test_a_checkpoint_that_the_store_spoilt_is_told_and_the_cycle_begins_anew(
    bench: Bench, tmp_path: Path, spoil: Any
) -> None:
    bench.plant(n_steps=6, every=2, die_after=3)
    assert bench.run() == "crashed"
    bench.configure(fake={"n_steps": 6})
    spoil(bench, checkpoints(bench)[-1][1], tmp_path)
    assert bench.run() == "succeeded"
    (refused,) = events(bench, "checkpoint_refused")
    assert refused["step"] == 2
    assert events(bench, "resumed") == []


# ---- rows


def test_a_stale_attempt_leaves_no_checkpoint(bench: Bench) -> None:
    database = bench.database
    database.run(lambda session: plant_job(session, "rows", n_cycles=1))
    worker_id = database.run(lambda session: plant_worker(session, "rows"))
    stale = claim_of(database, worker_id, "rows")
    database.run(lambda session: record_hand_back(session, stale, reason="It stops."))
    report = Report(checkpoints=(StoredCheckpoint(5, f"{stale.object_prefix}checkpoints/5/", "abc"),))
    with pytest.raises(StaleAttempt):
        database.run(lambda session: renew(session, stale, lease_s=30, report=report))
    assert database.run(lambda session: newest_checkpoint(session, stale.cycle_id)) is None
    assert claim_of(database, worker_id, "rows").checkpoint is None


def test_a_claim_carries_the_newest_whole_checkpoint_and_a_broken_off_one_is_to_go(bench: Bench) -> None:
    database = bench.database
    database.run(lambda session: plant_job(session, "rows", n_cycles=1))
    worker_id = database.run(lambda session: plant_worker(session, "rows"))
    claim = claim_of(database, worker_id, "rows")
    stored = [
        StoredCheckpoint(step, f"{claim.object_prefix}checkpoints/{step}/", digest)
        for step, digest in ((5, "a"), (9, "b"), (12, None))
    ]
    for once_more in (stored[:2], stored):
        report = Report(checkpoints=tuple(once_more))
        database.run(lambda session, report=report: renew(session, claim, lease_s=30, report=report))
    policy = RetryPolicy(max_attempts=3, backoff_s=0)
    database.run(lambda s: record_crash(s, claim, code="crashed", message="It died.", policy=policy))
    later = claim_of(database, worker_id, "rows")
    assert later.checkpoint is not None
    assert (later.checkpoint.step, later.checkpoint.attempt_number) == (9, 1)
    assert later.checkpoint.manifest_sha256 == "b"
    assert [step for step, _ in checkpoints(bench, is_usable=False)] == [12]


# ---- deleting


def test_objects_of_an_old_attempt_stay_while_its_checkpoint_is_needed(
    bench: Bench, cleaner: Cleaner
) -> None:
    bench.plant(n_steps=6, every=2, die_after=3)
    assert bench.run() == "crashed"
    ((_, prefix),) = checkpoints(bench)
    with bench.database.session_scope() as session:
        session.execute(update(Attempt).values(closed_at=TWO_DAYS_AGO))
    clean_up(cleaner)
    assert is_stored(bench, prefix)
    bench.configure(fake={"n_steps": 6})
    assert bench.run() == "succeeded"
    clean_up(cleaner)
    assert not is_stored(bench, prefix)


def test_checkpoints_of_a_failed_cycle_go_after_a_day_and_those_of_a_deleted_job_at_once(
    bench: Bench, cleaner: Cleaner
) -> None:
    bench.runtime.settings = bench.runtime.settings.model_copy(update={"max_attempts_in_all": 1})
    prefixes = []
    for _ in range(2):
        bench.plant(n_steps=6, every=2, die_after=3)
        assert bench.run() == "crashed"
        assert bench.states()[0] == "failed"
        prefixes.append(checkpoints(bench)[-1][1])
    clean_up(cleaner)
    assert all(is_stored(bench, prefix) for prefix in prefixes)
    with bench.database.session_scope() as session:
        owner_id = session.get_one(Job, bench.job_id).owner_id
        delete_job(session, bench.job_id, owner_id=owner_id)
    clean_up(cleaner)
    assert [is_stored(bench, prefix) for prefix in prefixes] == [True, False]
    with bench.database.session_scope() as session:
        session.execute(update(Cycle).where(Cycle.state == "failed").values(finished_at=TWO_DAYS_AGO))
    clean_up(cleaner)
    assert not any(is_stored(bench, prefix) for prefix in prefixes)
    with pytest.raises(NotFound):
        bench.runtime.objects.describe(f"{prefixes[0]}steps.txt")
