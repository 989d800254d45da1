"""What does the database hold at one moment, which objects does it name, and may a backup take its place?

How a backup lies on disk, and PostgreSQL's own programs, are the business of `dmsae/local/`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, Select, create_engine, func, inspect, select, sql, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from dmsae.errors import Conflict, FieldProblem, InvalidConfig
from dmsae.service.database import APPLICATION_NAME, CONNECTION, translated_errors
from dmsae.service.migrating import ADVISORY_LOCK, known_revisions, newest_revision, revision_of
from dmsae.service.tables import FENCES, Artifact, Table
from dmsae.service.upload_tables import Upload

VERSION_TABLE = "alembic_version"
PAGE_ROWS = 1000
FUNCTIONS = (
    "claim_cycle",
    "keep_published_core",
    "keep_published_places",
    "may_harvest",
    "owner_shares",
    "settle_attempt",
    "tally_attempt",
)
"""What migrations make beside tables; a dump makes it again."""


@dataclass(frozen=True)
class NamedObject:
    """An object that the database names."""

    key: str
    sha256: str | None
    """None where a user put the bytes straight into the store."""
    is_expected: bool
    """Whether it must be there: an upload may have been announced and never made."""


class Snapshot:
    """The database as it stood at one moment, whatever is written meanwhile."""

    def __init__(self, connection: Connection, revision: str) -> None:
        self._connection = connection
        self.revision = revision
        self.id: str = connection.scalars(text("SELECT pg_export_snapshot()")).one()

    def count_rows(self) -> dict[str, int]:
        """Count the rows of every table."""
        return _count_rows(self._connection)

    def named_objects(self) -> Iterator[NamedObject]:
        """List every object that a row names, a page at a time."""
        for query in OBJECT_QUERIES:
            rows = self._connection.execute(query.execution_options(yield_per=PAGE_ROWS))
            yield from (NamedObject(*row) for row in rows)


OBJECT_QUERIES: "tuple[Select[*tuple[Any, ...]], ...]" = (
    select(Artifact.object_key, Artifact.sha256, sql.true())
    .where(Artifact.deleted_at.is_(None))
    .order_by(Artifact.object_key),
    select(Upload.object_key, sql.null(), Upload.used_at.is_not(None))
    .where(Upload.deleted_at.is_(None))
    .order_by(Upload.object_key),
)
"""The objects that rows name and nobody has begun to delete, as `NamedObject`."""


@contextmanager
def open_snapshot(database_url: str) -> Iterator[Snapshot]:
    """Hold one unchanging view of the database, which `pg_dump --snapshot` can share while it is open.

    Raises:
        Unavailable: Postgres does not answer.
        Conflict: the database does not stand at this code's schema, so it may name objects elsewhere.
    """
    with _engine(database_url) as engine, engine.connect() as plain:
        connection = plain.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with connection.begin():
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            yield Snapshot(connection, _current_revision(connection))


def is_named(database_url: str, key: str) -> bool:
    """Tell whether a row still names an object that must be there.

    Raises:
        Unavailable: Postgres does not answer.
    """
    with _engine(database_url) as engine, engine.connect() as connection:
        queries = [query.subquery() for query in OBJECT_QUERIES]
        rows = [connection.execute(select(q).where(q.c[0] == key)).first() for q in queries]
    return any(row is not None and NamedObject(*row).is_expected for row in rows)


def server_version(database_url: str) -> int:
    """Give the major version of the PostgreSQL server.

    Raises:
        Unavailable: it does not answer.
    """
    with _engine(database_url) as engine, engine.connect() as connection:
        return int(connection.scalars(text("SHOW server_version_num")).one()) // 10_000


def check_restorable(database_url: str) -> None:
    """Refuse a database that holds anything, or that our own processes are connected to.

    Raises:
        Unavailable: Postgres does not answer.
        Conflict: the message names what is there.
    """
    with _engine(database_url) as engine, engine.connect() as connection:
        _refuse_company(connection)
        _refuse_contents(connection)


def clear_empty_schema(database_url: str) -> None:
    """Drop the tables of a migrated database that holds no row, so that a dump can make them again.

    Raises:
        Unavailable: Postgres does not answer, or somebody else works on the tables.
        Conflict: there is something in it after all; nothing is dropped.
    """
    with _engine(database_url) as engine, engine.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '10s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        tables = inspect(connection).get_table_names()
        quote = connection.dialect.identifier_preparer.quote_identifier
        quoted = ", ".join(map(quote, tables))
        if tables:
            connection.execute(text(f"LOCK TABLE {quoted} IN ACCESS EXCLUSIVE MODE"))
        _refuse_contents(connection)
        if tables:
            connection.execute(text(f"DROP TABLE {quoted}"))
        for name in FUNCTIONS:
            connection.execute(text(f"DROP FUNCTION IF EXISTS {name}"))
        FENCES.drop(connection, checkfirst=True)


def check_counts(database_url: str, expected: Mapping[str, int]) -> None:
    """Compare the number of rows of every table with what a backup says.

    Raises:
        Unavailable: Postgres does not answer.
        Conflict: a table has more or fewer.
    """
    with _engine(database_url) as engine, engine.connect() as connection:
        found = _count_rows(connection)
    wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if wrong:
        shown = ", ".join(f"{name}: {found.get(name)} for {expected.get(name)}" for name in wrong)
        raise Conflict(f"The restored database differs from the backup in its number of rows: {shown}.")


def check_revision(revision: str) -> None:
    """Refuse a schema that this code does not know.

    Raises:
        Conflict: newer code than this has made it.
    """
    if revision not in known_revisions():
        raise Conflict(
            f"The schema stands at revision {revision!r}, which this code does not know: "
            "newer code has made it. Use that version.",
            revision=revision,
        )


def libpq_environment(database_url: str) -> dict[str, str]:
    """Give the variables under which PostgreSQL's own programs reach the database: no password in arguments.

    Raises:
        InvalidConfig: the URL has a parameter for which there is no variable.
    """
    url = make_url(database_url)
    given = {**url.translate_connect_args(username="user", database="dbname"), **url.query}
    variables = {
        option.keyword.decode(): option.envvar.decode() if option.envvar else None
        for option in psycopg.pq.Conninfo.get_defaults()
    }
    unknown = [name for name in given if variables.get(name) is None]
    if unknown:
        rule = f"pg_dump and pg_restore cannot be told {', '.join(unknown)}: leave it out of the URL"
        raise InvalidConfig([FieldProblem("DMSAE_DATABASE_URL", "(not shown)", rule)])
    return {str(variables[name]): str(value) for name, value in given.items()}


def _current_revision(connection: Connection) -> str:
    revision, newest = revision_of(connection), newest_revision()
    if revision is None:
        raise Conflict("The database has no tables of DMSAE: there is nothing to back up.")
    if revision != newest:
        raise Conflict(
            f"The database stands at revision {revision!r}, and this code at {newest!r}: back it up with the "
            "version that made it, or run `dmsae migrate` first.",
            revision=revision,
        )
    return revision


def _refuse_company(connection: Connection) -> None:
    others = connection.scalars(
        text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = :name AND pid <> pg_backend_pid()"
        ),
        {"name": APPLICATION_NAME},
    ).one()
    if others:
        raise Conflict(
            f"{others} connections of API, workers or sweeper are open on this database: stop them first."
        )


def _refuse_contents(connection: Connection) -> None:
    strange = connection.scalars(
        text(
            "SELECT DISTINCT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n"
            " ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')"
            " AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'"
            " AND NOT (n.nspname = current_schema() AND c.relname = ANY(:ours))"
            " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('a', 'i', 'e'))"
            " ORDER BY 1"
        ),
        {"ours": [*Table.metadata.tables, VERSION_TABLE, FENCES.name]},
    ).all()
    rows = {name: n_rows for name, n_rows in _count_rows(connection).items() if n_rows}
    if strange or rows:
        found = [*strange, *(f"{n_rows} rows in {name}" for name, n_rows in rows.items())]
        raise Conflict(
            f"The database is not empty: it holds {', '.join(found[:10])}. Restore into an empty one."
        )


def _count_rows(connection: Connection) -> dict[str, int]:
    names = sorted(name for name in inspect(connection).get_table_names() if name != VERSION_TABLE)
    return {
        name: connection.scalars(select(func.count()).select_from(sql.table(name))).one() for name in names
    }


@contextmanager
def _engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(database_url, poolclass=NullPool, hide_parameters=True, connect_args=CONNECTION)
    try:
        with translated_errors():
            yield engine
    finally:
        engine.dispose()
