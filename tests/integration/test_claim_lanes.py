"""Claims that are being made at the same moment, in different lanes, which do not see each other's rows."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from dmsae.service.claims import Claim, claim_cycle
from dmsae.service.database import Database
from dmsae.service.queue_control import OwnerChanges, set_owner
from tests.integration.test_claim_order import plant, plant_workers
from tests.planting import plant_owner

LANE = text("SELECT pg_backend_pid() % 4")


def claim(session: Session, worker_id: str) -> Claim | None:
    return claim_cycle(session, worker_id=worker_id, resource_class="cpu", lease_s=30, celery_task_id=None)


@contextmanager
def two_lanes(database: Database) -> Iterator[tuple[Session, Session]]:
    """Give open transactions of two lanes; one that would wait for a lock for three seconds fails."""
    with ExitStack() as stack:
        sessions = {}
        while len(sessions) < 2:
            session = stack.enter_context(database.session_scope())
            session.execute(text("SET LOCAL lock_timeout = '3s'"))
            sessions.setdefault(session.scalar(LANE), session)
        first, second = sessions.values()
        yield first, second


def test_a_claim_waits_for_none_in_another_lane_and_takes_another_cycle(database: Database) -> None:
    workers = plant_workers(database, 2)
    planted = plant(database, database.run(plant_owner), n=2)
    with two_lanes(database) as lanes:
        claimed = [claim(session, worker) for session, worker in zip(lanes, workers, strict=True)]
        assert [c.job_id for c in claimed if c] == planted


def test_activations_that_another_lane_is_about_to_harvest_are_left_to_it(database: Database) -> None:
    workers = plant_workers(database, 2)
    owner = database.run(plant_owner)
    sweep = plant(database, owner, n=3, cycle_cache_key="sweep")
    (other,) = plant(database, owner, cycle_cache_key="other")
    with two_lanes(database) as lanes:
        claimed = [claim(session, worker) for session, worker in zip(lanes, workers, strict=True)]
        assert [c.job_id for c in claimed if c] == [sweep[0], other]


@pytest.fixture
def limited(database: Database) -> str:
    """An owner of whom one cycle may run."""
    owner = database.run(plant_owner)
    database.run(lambda session: set_owner(session, owner, OwnerChanges(max_running=1)))
    return owner


def waiting_claim(database: Database, pool: ThreadPoolExecutor, worker_id: str) -> "Future[Claim | None]":
    """Begin a claim that finds another before it, and give it once it waits."""
    future = pool.submit(lambda: database.run_alone(lambda session: claim(session, worker_id)))
    waits = text("SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)")
    for _ in range(200):
        if database.run(lambda session: session.scalar(waits)):
            return future
        time.sleep(0.02)
    raise AssertionError(f"the claim did not wait, it gave {future}")


def test_no_owner_runs_more_than_its_limit_by_claims_of_one_moment(database: Database, limited: str) -> None:
    first, second = plant_workers(database, 2)
    plant(database, limited, n=2)
    with ThreadPoolExecutor(1) as pool:
        with database.session_scope() as session:
            assert claim(session, first) is not None
            later = waiting_claim(database, pool, second)
        assert later.result() is None


@pytest.mark.usefixtures("limited")
def test_a_harvest_that_began_while_a_claim_waited_is_left_alone(database: Database) -> None:
    first, second = plant_workers(database, 2)
    plant(database, database.run(plant_owner), n=2, cycle_cache_key="sweep")
    with ThreadPoolExecutor(1) as pool:
        with database.session_scope() as session:
            assert claim(session, first) is not None
            later = waiting_claim(database, pool, second)
        assert later.result() is None
