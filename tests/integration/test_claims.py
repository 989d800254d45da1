"""Which cycle a worker gets: order, turns between owners, what is passed over, and who wins a race."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update

from dmsae.config import SPEC_VERSION
from dmsae.errors import DatabaseRefused
from dmsae.service.claims import Claim, claim_cycle
from dmsae.service.database import Database
from dmsae.service.ids import new_id
from dmsae.service.states import close_attempt, lock_job, move_cycle
from dmsae.service.tables import Attempt, Cycle, Job
from tests.planting import (
    cycle_states,
    event_kinds,
    fresh_class,
    job_state,
    plant_job,
    plant_owner,
    plant_worker,
)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, wake_up=lambda _: None, pool_size=20)
    yield database
    database.dispose()


@pytest.fixture
def resource_class() -> str:
    return fresh_class()


@pytest.fixture
def worker_id(database: Database, resource_class: str) -> str:
    return database.run(lambda session: plant_worker(session, resource_class))


def claim(database: Database, worker_id: str, resource_class: str) -> Claim | None:
    return database.run(
        lambda session: claim_cycle(
            session, worker_id=worker_id, resource_class=resource_class, lease_s=30, celery_task_id="task"
        )
    )


def test_a_claim_opens_an_attempt_and_starts_job_and_cycle(
    database: Database, worker_id: str, resource_class: str
) -> None:
    job_id = database.run(lambda session: plant_job(session, resource_class))
    claimed = claim(database, worker_id, resource_class)
    assert claimed is not None
    assert (claimed.job_id, claimed.cycle_index, claimed.attempt_number) == (job_id, 0, 1)
    assert claimed.spec["job_id"] == job_id
    assert claimed.spec["spec_version"] == SPEC_VERSION
    assert claimed.input_files == ()
    with database.session_scope() as session:
        assert job_state(session, job_id) == "running"
        assert cycle_states(session, job_id) == ["running", "waiting", "waiting"]
        assert event_kinds(session, job_id) == ["job_started", "attempt_opened"]
        attempt = session.get_one(Attempt, claimed.attempt_id)
        assert attempt.celery_task_id == "task"
        left = session.scalars(select(Attempt.lease_expires_at - func.now()).where(Attempt.id == attempt.id))
        assert timedelta(seconds=25) < left.one() <= timedelta(seconds=30)


def test_a_running_cycle_is_not_claimed_twice(
    database: Database, worker_id: str, resource_class: str
) -> None:
    database.run(lambda session: plant_job(session, resource_class))
    assert claim(database, worker_id, resource_class) is not None
    assert claim(database, worker_id, resource_class) is None


def test_another_resource_class_finds_nothing(
    database: Database, worker_id: str, resource_class: str
) -> None:
    database.run(lambda session: plant_job(session, resource_class))
    assert claim(database, worker_id, fresh_class()) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"held": True},
        {"spec_version": SPEC_VERSION + 1},
        {"state": "cancelling"},
        {"state": "succeeded", "finished_at": datetime.now(UTC)},
    ],
)
def test_cycles_that_may_not_run_are_passed_over(
    database: Database, worker_id: str, resource_class: str, fields: dict[str, object]
) -> None:
    database.run(lambda session: plant_job(session, resource_class, **fields))
    assert claim(database, worker_id, resource_class) is None


def test_a_cycle_in_backoff_waits_until_its_time(
    database: Database, worker_id: str, resource_class: str
) -> None:
    job_id = database.run(lambda session: plant_job(session, resource_class))

    def set_not_before(seconds: float) -> None:
        with database.session_scope() as session:
            when = func.now() + timedelta(seconds=seconds)
            session.execute(update(Cycle).where(Cycle.job_id == job_id).values(not_before=when))

    set_not_before(60)
    assert claim(database, worker_id, resource_class) is None
    set_not_before(-1)
    assert claim(database, worker_id, resource_class) is not None


def test_a_locked_job_is_passed_over_and_the_next_one_claimed_at_once(
    database: Database, worker_id: str, resource_class: str
) -> None:
    first = database.run(lambda session: plant_job(session, resource_class))
    second = database.run(lambda session: plant_job(session, resource_class))
    with database.session_scope() as session:
        lock_job(session, first)
        claimed = claim(database, worker_id, resource_class)
    assert claimed is not None
    assert claimed.job_id == second


def test_high_priority_goes_first_then_the_older_job(
    database: Database, worker_id: str, resource_class: str
) -> None:
    owner_id = database.run(plant_owner)
    planted = [
        database.run(lambda s, p=p: plant_job(s, resource_class, owner_id=owner_id, priority=p))
        for p in ("low", "normal", "normal", "high")
    ]
    claimed = [claim(database, worker_id, resource_class) for _ in planted]
    assert [c.job_id for c in claimed if c] == [planted[3], planted[1], planted[2], planted[0]]


def test_an_owner_of_many_jobs_does_not_hold_up_another(
    database: Database, worker_id: str, resource_class: str
) -> None:
    greedy, modest = database.run(plant_owner), database.run(plant_owner)
    for _ in range(6):
        database.run(lambda session: plant_job(session, resource_class, owner_id=greedy))
    modest_jobs = {
        database.run(lambda session: plant_job(session, resource_class, owner_id=modest)) for _ in range(2)
    }
    claimed = [claim(database, worker_id, resource_class) for _ in range(4)]
    assert modest_jobs <= {c.job_id for c in claimed if c}


def test_device_time_used_counts_against_its_owner(
    database: Database, worker_id: str, resource_class: str
) -> None:
    used, fresh = database.run(plant_owner), database.run(plant_owner)
    database.run(lambda session: plant_job(session, resource_class, owner_id=used))
    first = claim(database, worker_id, resource_class)
    assert first is not None
    with database.session_scope() as session:
        begun = func.now() - timedelta(hours=1)
        session.execute(update(Attempt).where(Attempt.id == first.attempt_id).values(opened_at=begun))
        close_attempt(session, first, "handed_back")
        move_cycle(session, first.cycle_id, "queued")
    fresh_jobs = [
        database.run(lambda session: plant_job(session, resource_class, owner_id=fresh)) for _ in range(3)
    ]
    claimed = [claim(database, worker_id, resource_class) for _ in range(4)]
    assert [c.job_id for c in claimed if c] == [*fresh_jobs, first.job_id]


def test_many_workers_at_once_claim_every_cycle_once(
    database: Database, worker_id: str, resource_class: str
) -> None:
    owners = [database.run(plant_owner) for _ in range(3)]
    for i in range(24):
        database.run(lambda s, i=i: plant_job(s, resource_class, owner_id=owners[i % 3], n_cycles=1))
    with ThreadPoolExecutor(12) as pool:
        claimed = [c for c in pool.map(lambda _: claim(database, worker_id, resource_class), range(40)) if c]
    assert len(claimed) == 24
    assert max(Counter(c.cycle_id for c in claimed).values()) == 1
    assert len({c.fence for c in claimed}) == 24


def test_a_later_attempt_has_a_larger_fence(database: Database, worker_id: str, resource_class: str) -> None:
    database.run(lambda session: plant_job(session, resource_class))
    first = claim(database, worker_id, resource_class)
    assert first is not None
    with database.session_scope() as session:
        close_attempt(session, first, "handed_back")
        move_cycle(session, first.cycle_id, "queued")
    second = claim(database, worker_id, resource_class)
    assert second is not None
    assert second.attempt_number == 2
    assert second.fence > first.fence
    assert second.object_prefix != first.object_prefix


def test_the_database_allows_one_open_attempt_of_a_cycle(
    database: Database, worker_id: str, resource_class: str
) -> None:
    database.run(lambda session: plant_job(session, resource_class))
    claimed = claim(database, worker_id, resource_class)
    assert claimed is not None
    with pytest.raises(DatabaseRefused) as caught, database.session_scope() as session:
        session.add(
            Attempt(
                id=new_id("attempt"),
                cycle_id=claimed.cycle_id,
                number=2,
                fence=-1,
                worker_id=worker_id,
                lease_expires_at=func.now(),
            )
        )
    assert caught.value.fields["constraint"] == "uq_attempts_open"


def test_the_jobs_version_grows_with_a_claim(database: Database, worker_id: str, resource_class: str) -> None:
    job_id = database.run(lambda session: plant_job(session, resource_class))

    def version() -> int:
        return database.run(lambda s: s.scalars(select(Job.version).where(Job.id == job_id)).one())

    before = version()
    claim(database, worker_id, resource_class)
    assert version() > before
