"""What comes of a transaction that does not go well: tried again, or an error that tells no values."""

import socket
import threading
import time
from collections.abc import Callable
from select import select as select_ready

import psycopg
import pytest
from sqlalchemy import BigInteger, Text, bindparam, cast, event, func, select, text, update
from sqlalchemy.orm import Session

from dmsae.errors import DatabaseRefused, DmsaeError, Unavailable
from dmsae.service.database import Database, wake_after_commit
from dmsae.service.leadership import Leadership
from dmsae.service.prepared import Prepared
from dmsae.service.settings import Settings
from dmsae.service.tables import Owner
from tests.planting import plant_owner

SECRET = "hunter2"


def raising(state: str) -> Callable[[Session], None]:
    """Make a use case that fails inside Postgres with this SQLSTATE."""
    statement = text(f"DO $$ BEGIN RAISE EXCEPTION 'about {SECRET}' USING ERRCODE = '{state}'; END $$")
    return lambda session: session.execute(statement)


def store_name(name: str) -> Callable[[Session], None]:
    return lambda session: session.execute(update(Owner).values(name=name))


@pytest.mark.parametrize(
    "use_case",
    [
        store_name(f"{SECRET}\x00"),
        lambda session: session.execute(text("SELECT CAST(:given AS bigint)"), {"given": SECRET}),
        lambda session: session.execute(text("SELECT hunter2 FROM nowhere")),
        lambda session: session.add(Owner(id=SECRET, name=None)),
        lambda session: session.execute(select(Owner).where(Owner.created_at == SECRET)),
        raising("54000"),
    ],
    ids=["nul", "number", "statement", "constraint", "type", "limit"],
)
def test_what_postgres_refuses_is_told_without_statement_or_values(
    database: Database, use_case: Callable[[Session], object]
) -> None:
    database.run(plant_owner)
    with pytest.raises(DatabaseRefused) as caught:
        database.run(use_case)
    assert caught.value.code == "internal_error"
    told = (str(caught.value), *map(str, caught.value.fields.values()))
    assert not [text for text in told if SECRET in text]
    with pytest.raises(DatabaseRefused), database.session_scope() as session:
        use_case(session)


def test_connections_that_end_as_soon_as_they_are_made_are_an_outage(
    database: Database, settings: Settings
) -> None:
    database.run(plant_owner)
    url = settings.database_url.get_secret_value().replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as killer:

        def end(driver: psycopg.Connection, _: object = None) -> None:
            killer.execute("SELECT pg_terminate_backend(%s)", [driver.info.backend_pid])
            assert select_ready([driver.fileno()], [], [], 10)[0]

        with database.engine.connect() as pooled:
            pid = pooled.scalar(select(func.pg_backend_pid()))
        event.listen(database.engine, "connect", end)
        killer.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        with pytest.raises(Unavailable):
            database.run(plant_owner)
    event.remove(database.engine, "connect", end)
    assert database.run(lambda session: session.scalar(select(func.count()).select_from(Owner))) == 1


def test_what_the_driver_sends_itself_fails_as_all_else_does_and_is_sent_again(database: Database) -> None:
    given = Prepared(select(cast(bindparam("given", "", Text), BigInteger)), tuple)
    with pytest.raises(DatabaseRefused) as caught:
        database.run_alone(lambda session: given.find(session, given=SECRET))
    assert SECRET not in str(caught.value)
    ended = select(func.pg_terminate_backend(func.pg_backend_pid()))
    for run in (database.run, database.run_alone):
        with pytest.raises(Unavailable):
            run(lambda session: Prepared(ended, tuple).find(session))
        assert run(lambda session: given.find(session, given="7")) == (7,)


@pytest.mark.parametrize("state", ["25006", "53100", "57P01", "55P03"])
def test_an_outage_is_no_refusal(database: Database, state: str) -> None:
    with pytest.raises(Unavailable):
        database.run(raising(state))


def test_a_use_case_that_was_refused_leaves_nothing_and_wakes_nobody(
    database: Database, wake_ups: list[str]
) -> None:
    def use_case(session: Session) -> None:
        plant_owner(session)
        wake_after_commit(session, "cpu")
        session.execute(text("SELECT 1 / 0"))

    with pytest.raises(DatabaseRefused):
        database.run(use_case)
    with database.session_scope() as session:
        assert session.scalars(select(Owner)).all() == []
    assert wake_ups == []


def test_two_transactions_in_a_deadlock_both_succeed(database: Database) -> None:
    owners = [database.run(plant_owner) for _ in range(2)]
    both_hold_one = threading.Barrier(2, timeout=10)
    n_tries = [0, 0]

    def rename(session: Session, me: int) -> None:
        n_tries[me] += 1
        for place, owner in enumerate((owners[me], owners[1 - me])):
            session.execute(update(Owner).where(Owner.id == owner).values(name=f"{me}.{place}"))
            if place == 0 and n_tries[me] == 1:
                both_hold_one.wait()

    threads = [
        threading.Thread(target=database.run, args=(lambda session, me=me: rename(session, me),))
        for me in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sum(n_tries) == 3
    with database.session_scope() as session:
        names = set(session.scalars(select(Owner.name)))
    assert names in ({"0.0", "0.1"}, {"1.0", "1.1"})


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_who_loses_every_time_is_told_to_try_again(database: Database, state: str) -> None:
    n_tried = 0

    def use_case(session: Session) -> None:
        nonlocal n_tried
        n_tried += 1
        raising(state)(session)

    with pytest.raises(Unavailable):
        database.run(use_case)
    assert n_tried > 1
    with pytest.raises(Unavailable), database.session_scope() as session:
        use_case(session)


def test_no_free_connection_is_an_outage(database_url: str) -> None:
    narrow = Database(database_url, wake_up=lambda _: None, pool_size=1)
    narrow.engine.pool._timeout = 0.1
    with narrow.session_scope() as session:
        session.execute(select(1))
        with pytest.raises(Unavailable):
            narrow.run(plant_owner)
    narrow.dispose()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux can tell")
def test_a_connection_whose_peer_vanishes_ends_within_seconds(database: Database) -> None:
    with database.engine.connect() as connection:
        fd = connection.connection.driver_connection.fileno()
        with socket.socket(fileno=socket.dup(fd)) as peer:
            assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            tcp = {
                name: peer.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            }
    assert tcp["TCP_KEEPIDLE"] + tcp["TCP_KEEPINTVL"] * tcp["TCP_KEEPCNT"] <= 15
    assert 0 < tcp["TCP_USER_TIMEOUT"] <= 15_000


def test_the_lead_is_lost_with_its_connection(database: Database) -> None:
    first, second = Leadership(database), Leadership(database)
    assert first.hold()
    assert first.hold()
    assert not second.hold()
    with database.session_scope() as session:
        kill = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
        assert session.execute(text(kill)).all()
    with pytest.raises(DmsaeError, match="connection was lost"):
        first.hold()
    assert second.hold()
    first.resign()
    assert not first.hold()
    second.resign()
    ends_at = time.monotonic() + 30
    while not first.hold():  # Postgres hears of the closed connection a moment later
        assert time.monotonic() < ends_at
    first.resign()
