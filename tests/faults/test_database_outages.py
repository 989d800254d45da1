"""Postgres restarted, gone, frozen, locked, without a connection left: training goes on in the same attempt.

Each outage takes two leases; what ended meanwhile is recorded afterwards, nothing is closed as crashed, and
the API says 503 until it answers again by itself.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import psutil
import psycopg
import pytest
from sqlalchemy import func, make_url, select

from dmsae.service.cancelling import cancel_job
from dmsae.service.tables import Attempt, Cycle, MetricPoint
from tests.conftest import SHORT_TIMES, RunningServices
from tests.faults.crew import IS_FULL, Crew, in_full, wait_for
from tests.faults.staff import Staff, staffed

LEASES_S = 2 * SHORT_TIMES["lease_s"]
AWAY_S = 4 * LEASES_S if IS_FULL else LEASES_S + 1
FADES_S = 1.0
"""A transaction that waits for its client for longer is one that work goes on in."""
Outage = Callable[[RunningServices, Staff], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def staff(services: RunningServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staff]:
    with staffed(services, tmp_path_factory.mktemp("crew")) as staff:
        yield staff


@contextmanager
def gone(services: RunningServices, _: Staff) -> Iterator[None]:
    services.postgres.kill()
    try:
        yield
    finally:
        services.postgres.restart()


@contextmanager
def frozen(services: RunningServices, _: Staff) -> Iterator[None]:
    """Freeze Postgres with its backends, each of which leads a session of its own.

    The kernel still acknowledges what is sent, so nobody is told anything: whoever asked waits.
    """
    main = psutil.Process(services.postgres.pid)
    stopped = [main, *main.children(recursive=True)]
    for process in stopped:
        process.suspend()
    try:
        yield
        assert {process.status() for process in stopped} == {psutil.STATUS_STOPPED}
    finally:
        for process in reversed(stopped):
            process.resume()


@contextmanager
def locked(services: RunningServices, staff: Staff) -> Iterator[None]:
    """Lock the jobs, so that every connection of every pool waits."""
    with psycopg.connect(database_of(services, staff)) as connection:
        connection.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        with ThreadPoolExecutor(20) as pool:
            asked = [pool.submit(staff.api.get, "/jobs") for _ in range(20)]
            yield
            connection.rollback()
            answered = Counter(call.result().status_code for call in asked)
    assert answered[503] > 0
    assert set(answered) <= {200, 503}


@contextmanager
def crowded(services: RunningServices, staff: Staff) -> Iterator[None]:
    """Take every connection that Postgres has, those of the staff too."""
    name, server = make_url(database_of(services, staff)).database, services.server_url("postgres")
    stop, taken = threading.Event(), list[psycopg.Connection]()

    def take() -> None:
        while not stop.is_set():
            try:
                taken.append(psycopg.connect(server, connect_timeout=5))
            except psycopg.OperationalError:
                stop.wait(0.01)

    with psycopg.connect(server, autocommit=True) as admin:
        takers = [threading.Thread(target=take) for _ in range(4)]
        for taker in takers:
            taker.start()

        out_since = time.monotonic()

        def are_out() -> bool:
            """End the staff's connections until none has found room again for a second."""
            nonlocal out_since
            mine = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            if admin.execute(mine, (name,)).fetchall():
                out_since = time.monotonic()
            return time.monotonic() - out_since > 1 and len(taken) > 150

        try:
            wait_for(are_out, seconds=60, what="all connections are taken")
            yield
        finally:
            stop.set()
            for taker in takers:
                taker.join()
            for connection in taken:
                connection.close()


def database_of(services: RunningServices, staff: Staff) -> str:
    """Give psycopg's URL of the staff's own database."""
    return services.server_url(str(make_url(staff.crew.env["DMSAE_DATABASE_URL"]).database))


def n_points(crew: Crew, job_id: str) -> int:
    query = select(func.count()).select_from(MetricPoint).join(Cycle, Cycle.id == MetricPoint.cycle_id)
    with crew.database.session_scope() as session:
        return session.scalars(query.where(Cycle.job_id == job_id)).one()


def n_missed(crew: Crew) -> int:
    return sum(crew.log(f"worker-cpu-{slot}").count("heartbeat_missed") for slot in range(2))


@pytest.mark.parametrize(
    "outage", [gone, *(pytest.param(outage, marks=in_full) for outage in (crowded, locked, frozen))]
)
def test_training_goes_on_in_the_same_attempt_through_two_leases_without_postgres(
    staff: Staff, services: RunningServices, outage: Outage
) -> None:
    crew, missed_before = staff.crew, n_missed(staff.crew)
    ends_meanwhile, goes_on = staff.train(2.0, AWAY_S + 2)
    queued = crew.plant()
    trainers = {job: pid for what, job, _, pid in crew.marks() if what == "begin"}
    with outage(services, staff):
        begun = time.monotonic()
        if outage is not frozen:
            answer = staff.api.get("/jobs")
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        wait_for(
            lambda: ("end", ends_meanwhile, 0, trainers[ends_meanwhile]) in crew.marks(),
            seconds=60,
            what="a trainer ends meanwhile",
        )
        time.sleep(max(0.0, AWAY_S - (time.monotonic() - begun)))
    wait_for(lambda: staff.api.get("/jobs").status_code == 200, seconds=60, what="the API answers again")
    staff.assert_ran_once([ends_meanwhile, goes_on, queued], seconds=60)
    assert n_missed(crew) > missed_before or outage in (locked, frozen)  # where beats only waited
    assert ("end", goes_on, 0, trainers[goes_on]) in crew.marks()
    assert [n_points(crew, job) for job in (ends_meanwhile, goes_on)] == [5, 5]
    with crew.database.session_scope() as session:
        crashed = select(func.count()).where(Attempt.outcome == "crashed")
        assert session.scalars(crashed).one() == 0


def test_a_restart_of_postgres_in_the_middle_of_cycles_is_not_noticed(
    staff: Staff, services: RunningServices
) -> None:
    pid = services.postgres.pid
    jobs = staff.train(2.0, 2.0)
    services.postgres.restart()
    assert services.postgres.pid != pid
    assert staff.api.get("/jobs").status_code == 200
    staff.assert_ran_once([*jobs, staff.crew.plant()])
    staff.assert_ran_once([staff.post()], n_cycles=3)


@in_full
def test_a_cancellation_reaches_a_trainer_that_went_on_without_postgres(
    staff: Staff, services: RunningServices
) -> None:
    job_id, other = staff.train(100.0, AWAY_S)
    with gone(services, staff):
        time.sleep(AWAY_S)
    staff.crew.database.run(lambda session: cancel_job(session, job_id))
    staff.crew.wait_until(job_id, "cancelled", seconds=60)
    assert staff.crew.outcomes(job_id) == ["cancelled"]
    staff.assert_ran_once([other])


def test_no_transaction_waits_while_cycles_train(staff: Staff, services: RunningServices) -> None:
    jobs = staff.train(2.0, 2.0)
    query = (
        "SELECT state, clock_timestamp() - state_change > make_interval(secs => %s) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'dmsae'"
    )
    seen = Counter[tuple[str, bool]]()
    with psycopg.connect(database_of(services, staff), autocommit=True) as connection:
        while any(staff.crew.phases().get(job) for job in jobs):
            seen.update(connection.execute(query, (FADES_S,)).fetchall())
            time.sleep(0.02)
    waiting = {key: n for key, n in seen.items() if key[0].startswith("idle in transaction") and key[1]}
    assert waiting == {}
    assert sum(seen.values()) > 100
    staff.assert_ran_once(jobs)
