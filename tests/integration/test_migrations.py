"""The schema that migrations make is the one that the tables say, and two replicas make it once."""

import runpy
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine, inspect, select, text, update
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

import dmsae
import dmsae.service.idempotency_tables
import dmsae.service.source_tables
import dmsae.service.tally_tables
import dmsae.service.upload_tables
import dmsae.service.webhook_tables
from dmsae.errors import Conflict, NotFound, Unavailable
from dmsae.service.backing_up import FUNCTIONS
from dmsae.service.database import Database
from dmsae.service.migrating import is_current, migrate, unmigrate
from dmsae.service.tables import CoreLatent, Table
from tests.conftest import RunningServices
from tests.finished import finish_cycles
from tests.planting import plant_job


@pytest.fixture
def empty_url(services: RunningServices) -> Iterator[str]:
    name = f"empty_{uuid.uuid4().hex}"
    with psycopg.connect(services.server_url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield services.parts.postgres.url(name)
    with psycopg.connect(services.server_url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def names_of_rules(connection: Connection) -> dict[str, set[str]]:
    query = (
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace"
    )
    found: dict[str, set[str]] = {}
    for table, name, definition in connection.execute(text(query)):
        if table != "alembic_version":
            found.setdefault(table, set()).add(f"{name}: {definition}")
    return found


def column_rules(connection: Connection) -> set[tuple[object, ...]]:
    query = (
        "SELECT table_name, column_name, data_type, column_default, is_nullable, is_identity "
        "FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
    )
    return {tuple(row) for row in connection.execute(text(query))}


def index_rules(connection: Connection) -> set[str]:
    query = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
    return set(connection.scalars(text(query)))


def test_migrating_an_empty_database_up_down_and_up_again_works(empty_url: str) -> None:
    engine = create_engine(empty_url, poolclass=NullPool)
    migrate(empty_url)
    assert set(inspect(engine).get_table_names()) == {*Table.metadata.tables, "alembic_version"}
    unmigrate(empty_url)
    assert inspect(engine).get_table_names() == ["alembic_version"]
    with Session(engine) as session:
        assert not is_current(session)
    migrate(empty_url)
    with Session(engine) as session:
        assert is_current(session)


def test_the_migrated_schema_is_the_one_that_the_tables_say(empty_url: str, database_url: str) -> None:
    planned = create_engine(empty_url, poolclass=NullPool)
    migrated = create_engine(database_url, poolclass=NullPool)
    Table.metadata.create_all(planned)
    with planned.connect() as wanted, migrated.connect() as found:
        context = MigrationContext.configure(found, opts={"compare_server_default": True})
        assert compare_metadata(context, Table.metadata) == []
        assert names_of_rules(found) == names_of_rules(wanted)
        assert column_rules(found) == column_rules(wanted)
        assert index_rules(found) == index_rules(wanted)
        assert found.scalar(text("SELECT nextval('fencing_numbers')")) == 1


def test_a_restore_knows_every_function_that_migrations_make(database_url: str) -> None:
    made = "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY proname"
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        assert tuple(name for (name,) in connection.execute(made)) == FUNCTIONS


def test_cores_of_before_know_how_often_each_latent_was_selected(database: Database) -> None:
    database.run(lambda session: plant_job(session, "cpu"))
    finish_cycles(database)
    folder = Path(dmsae.__file__).parents[1] / "migrations" / "versions"
    migration = runpy.run_path(str(folder / "0004_trainings.py"))
    times = select(CoreLatent.times_selected).order_by(CoreLatent.core_id, CoreLatent.core_index)
    with database.session_scope() as session:
        told = session.scalars(times).all()
        session.execute(update(CoreLatent).values(times_selected=None))
        session.execute(text(migration["COUNT_SELECTIONS"]))
        assert session.scalars(times).all() == told
    assert told == [1, 1, 1, 2, 2, 1, 3, 2]


def test_of_two_replicas_that_migrate_at_once_both_succeed(empty_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(migrate, empty_url) for _ in range(4)]:
            done.result(60)
    with Session(create_engine(empty_url, poolclass=NullPool)) as session:
        assert is_current(session)


def test_a_database_of_newer_code_is_refused(empty_url: str) -> None:
    migrate(empty_url)
    with create_engine(empty_url, poolclass=NullPool).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Conflict, match="9999"):
        migrate(empty_url)


def test_an_absent_server_and_an_absent_checkout_are_said_plainly(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(Unavailable):
        migrate("postgresql+psycopg://nobody:x@127.0.0.1:1/none")
    monkeypatch.setattr(dmsae, "__file__", str(tmp_path / "dmsae" / "__init__.py"))
    with pytest.raises(NotFound, match="checkout"):
        migrate(empty_url)
