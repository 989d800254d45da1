"""A deleted job is gone for everybody, and what others reuse of it stays."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from dmsae.errors import Conflict, Deleted, Forbidden, NotFound
from dmsae.service import purging
from dmsae.service.claims import Claim, StoredFile
from dmsae.service.database import Database
from dmsae.service.deleting import delete_job
from dmsae.service.jobs import JobFilter, find_job, list_events, list_jobs
from dmsae.service.lineage import list_lineage, view_core, view_origins
from dmsae.service.objects import ObjectStore
from dmsae.service.recording import record_hand_back, record_success
from dmsae.service.settings import Settings
from dmsae.service.tables import (
    Artifact,
    Attempt,
    Core,
    CoreLatent,
    Cycle,
    Event,
    Job,
    Latent,
    MetricPoint,
    Table,
)
from tests.finished import claim_of, finish_cycles
from tests.planting import (
    as_result,
    core_entry,
    job_state,
    make_lineage,
    plant_job,
    plant_owner,
    plant_worker,
)
from worker.cleaner import DAY_S, Cleaner

TWO_DAYS_AGO = func.clock_timestamp() - func.make_interval(0, 0, 0, 2)


@pytest.fixture
def owner_id(database: Database) -> str:
    return database.run(plant_owner)


@pytest.fixture
def store(settings: Settings) -> Iterator[ObjectStore]:
    store = ObjectStore(settings)
    yield store
    store.close()


@pytest.fixture
def cleaner(settings: Settings, database: Database, store: ObjectStore) -> Iterator[Cleaner]:
    cleaner = Cleaner(settings, database, store, batch=2)
    yield cleaner
    cleaner.resign()


def finished_job(database: Database, owner_id: str, *, n_cycles: int = 3) -> str:
    job_id = database.run(lambda s: plant_job(s, "cpu", owner_id=owner_id, n_cycles=n_cycles))
    finish_cycles(database, n_cycles=n_cycles)
    return job_id


def delete(database: Database, job_id: str, owner_id: str) -> None:
    database.run(lambda session: delete_job(session, job_id, owner_id=owner_id))


def clean_up(cleaner: Cleaner) -> int:
    """Clean until nothing is left to do; give how many steps it took."""
    cleaner._purged_at = -DAY_S
    n_steps = 1
    while cleaner.do_part():
        n_steps += 1
        assert n_steps < 100
    return n_steps


def age(database: Database) -> None:
    """Make all that happened happen two days ago."""
    with database.session_scope() as session:
        session.execute(update(Attempt).where(Attempt.closed_at.is_not(None)).values(closed_at=TWO_DAYS_AGO))


def count(session: Session, table: type[Table], *conditions: object) -> int:
    return session.scalars(select(func.count()).select_from(table).where(*conditions)).one()  # type: ignore[arg-type]


def reuse_last_core(database: Database, job_id: str, owner_id: str) -> tuple[str, Claim]:
    """Begin a job of one cycle from the last core of another one."""
    with database.session_scope() as session:
        core = view_core(session, job_id)
        user_id = plant_job(session, "other", owner_id=owner_id, n_cycles=1)
        session.execute(update(Cycle).where(Cycle.job_id == user_id).values(input_core_id=core.core_id))
        worker_id = plant_worker(session, "other")
    return user_id, claim_of(database, worker_id, "other")


def finish_reuse(database: Database, claim: Claim, job_id: str) -> None:
    """Keep both latents of the core given and add one."""
    rows = ((0, 3), (1, 20))
    given = [
        core_entry(claim, place, row)
        | {"latent_id": f"{job_id}.{cycle}.{row}", "origin_job_id": job_id, "origin_cycle": cycle}
        for place, (cycle, row) in enumerate(rows)
    ]
    lineage = make_lineage(claim, given, kept=[0, 1], new=[40])
    name = "core/core.json"
    file = StoredFile(name, f"{claim.object_prefix}{name}", 12, "0" * 64)
    result = as_result(lineage)
    database.run(lambda session: record_success(session, claim, artifacts=(file,), result=result))


def what_is_told(database: Database, job_id: str) -> tuple[list[str], list[tuple[str, int]], list[list[int]]]:
    """Give the latents of a job's lineage, which are those of its core, and the matrix of their origins."""
    with database.session_scope() as session:
        held = [member.latent.public_id for member in view_core(session, job_id).members.items]
        assert sorted(held) == sorted(p.latent.public_id for p in list_lineage(session, job_id).items)
        origins = view_origins(session, job_id)
        return held, origins.origins, origins.matrix


def test_a_job_that_has_not_ended_is_refused_with_what_to_do(database: Database, owner_id: str) -> None:
    job_id = database.run(lambda session: plant_job(session, "cpu", owner_id=owner_id))
    with pytest.raises(Conflict, match="is queued: cancel it first"):
        delete(database, job_id, owner_id)
    claim_of(database, database.run(lambda session: plant_worker(session, "cpu")))
    with pytest.raises(Conflict, match="is running: cancel it first"):
        delete(database, job_id, owner_id)
    with database.session_scope() as session:
        assert job_state(session, job_id) == "running"


def test_only_its_owner_may_delete_a_job_and_twice_is_once(database: Database, owner_id: str) -> None:
    job_id = finished_job(database, owner_id)
    stranger = database.run(plant_owner)
    with pytest.raises(Forbidden):
        delete(database, job_id, stranger)
    with pytest.raises(NotFound, match="no job"):
        delete(database, "job_none", owner_id)
    delete(database, job_id, owner_id)
    with database.session_scope() as session:
        first = session.scalars(select(Job.deleted_at)).one()
    delete(database, job_id, owner_id)
    with database.session_scope() as session:
        assert session.scalars(select(Job.deleted_at)).one() == first
    with pytest.raises(Forbidden):
        delete(database, job_id, stranger)


def test_a_deleted_job_is_not_found_anywhere_and_says_when_it_went(database: Database, owner_id: str) -> None:
    job_id = finished_job(database, owner_id)
    delete(database, job_id, owner_id)
    with database.session_scope() as session:
        assert list_jobs(session, JobFilter()).items == []
        for ask in (find_job, view_core, list_lineage, view_origins):
            with pytest.raises(Deleted, match=r"was deleted at 20\d\d-") as caught:
                ask(session, job_id)  # type: ignore[operator]
            assert caught.value.code == "deleted"
        with pytest.raises(Deleted):
            list_events(session, job_id, after=0, limit=1)


def test_what_a_deleted_job_left_goes_bit_by_bit(
    database: Database, owner_id: str, cleaner: Cleaner, store: ObjectStore, tmp_path: Path
) -> None:
    job_id = finished_job(database, owner_id)
    path = tmp_path / "file"
    path.write_text("core")
    with database.session_scope() as session:
        keys = list(session.scalars(select(Artifact.object_key)))
        cycle_id = session.scalars(select(Cycle.id).limit(1)).one()
        points = [{"cycle_id": cycle_id, "step": step, "fence": 1, "n_tokens": step} for step in range(5)]
        session.execute(insert(MetricPoint), points)
        session.execute(update(Attempt).values(log_tail="told", progress={"step": 1}))
    for key in keys:
        store.put_file(key, path)
    assert clean_up(cleaner) == 1
    assert store.describe(keys[0]).size_bytes == 4
    delete(database, job_id, owner_id)
    assert clean_up(cleaner) > 3
    for key in keys:
        with pytest.raises(NotFound):
            store.describe(key)
    with database.session_scope() as session:
        assert [count(session, table) for table in (Artifact, Event, MetricPoint)] == [0, 0, 0]
        assert set(session.execute(select(Attempt.log_tail, Attempt.progress))) == {("", None)}
        assert count(session, Latent) == 4
        assert session.scalars(select(Job.cleared_at)).one() is not None
    age(database)
    clean_up(cleaner)
    with database.session_scope() as session:
        left = [count(session, table) for table in (CoreLatent, Latent, Core, Attempt, Cycle)]
        assert left == [0, 0, 0, 0, 0]
        assert session.scalars(select(Job.purged_at)).one() is not None
        with pytest.raises(Deleted):
            find_job(session, job_id)


def test_a_cleaner_that_breaks_off_after_deleting_an_object_goes_on_where_it_stopped(
    database: Database, owner_id: str, cleaner: Cleaner, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = finished_job(database, owner_id)
    delete(database, job_id, owner_id)
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise MemoryError

        patch.setattr(purging, "forget_artifacts", fail)
        with pytest.raises(MemoryError):
            cleaner.do_part()
    with database.session_scope() as session:
        assert count(session, Artifact, Artifact.deleted_at.is_not(None)) == 3
    clean_up(cleaner)
    with database.session_scope() as session:
        assert count(session, Artifact) == 0


def test_latents_that_another_job_reuses_stay_until_that_job_is_deleted_too(
    database: Database, owner_id: str, cleaner: Cleaner
) -> None:
    job_id = finished_job(database, owner_id)
    user_id, claim = reuse_last_core(database, job_id, owner_id)
    with pytest.raises(Conflict, match=f"{user_id}.* starts from a core"):
        delete(database, job_id, owner_id)
    finish_reuse(database, claim, job_id)
    told = what_is_told(database, user_id)
    assert told[0] == [f"{job_id}.0.3", f"{job_id}.1.20", f"{user_id}.0.40"]
    delete(database, job_id, owner_id)
    age(database)
    clean_up(cleaner)
    with database.session_scope() as session:
        assert count(session, Latent, Latent.origin_job_id == job_id) == 4
        assert session.get_one(Job, job_id).purged_at is None
    assert what_is_told(database, user_id) == told
    delete(database, user_id, owner_id)
    age(database)
    clean_up(cleaner)
    clean_up(cleaner)
    with database.session_scope() as session:
        assert count(session, Latent) == count(session, Cycle) == 0
        assert count(session, Job, Job.purged_at.is_not(None)) == 2


def test_what_attempts_without_success_stored_is_deleted_after_a_day(
    database: Database, cleaner: Cleaner, store: ObjectStore, tmp_path: Path
) -> None:
    database.run(lambda session: plant_job(session, "cpu"))
    claim = claim_of(database, database.run(lambda session: plant_worker(session, "cpu")))
    path = tmp_path / "file"
    path.write_text("left over")
    key = store.put_file(f"{claim.object_prefix}file", path).key
    store._client.create_multipart_upload(Bucket=store._bucket, Key=f"{claim.object_prefix}half")
    database.run(lambda session: record_hand_back(session, claim, reason="stops"))
    clean_up(cleaner)
    assert store.describe(key).size_bytes == 9
    age(database)
    clean_up(cleaner)
    assert store.delete_prefix(claim.object_prefix) == 0
    assert store.abandon_uploads(claim.object_prefix) == 0
    with database.session_scope() as session:
        assert session.scalars(select(Attempt.cleared_at)).one() is not None


def test_of_two_cleaners_one_acts_and_a_store_that_is_away_ends_neither(
    settings: Settings, database: Database, cleaner: Cleaner, owner_id: str
) -> None:
    away = ObjectStore(settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:1"}))
    lame = Cleaner(settings, database, away)
    job_id = finished_job(database, owner_id, n_cycles=1)
    delete(database, job_id, owner_id)
    assert not lame.do_part()
    with database.session_scope() as session:
        assert count(session, Artifact) == 1
    assert cleaner._leadership.hold()
    assert not lame._leadership.hold()
    clean_up(cleaner)
    away.close()
    with database.session_scope() as session:
        assert count(session, Artifact) == 0


def test_the_sweepers_process_cleans_and_stops_when_told(
    stack_env: dict[str, str], database: Database, owner_id: str
) -> None:
    delete(database, finished_job(database, owner_id, n_cycles=1), owner_id)
    env = {**os.environ, **stack_env, "DMSAE_CLEAN_S": "0.2"}
    process = subprocess.Popen([sys.executable, "-m", "worker.sweeper"], env=env, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with database.session_scope() as session:
                if session.scalars(select(Job.cleared_at)).one() is not None:
                    break
            time.sleep(0.2)
        else:
            pytest.fail("Nothing was cleaned.")
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
