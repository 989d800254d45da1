"""How the schema gets to where `tables.py` says: Alembic, one process at a time.

The revisions lie in the checkout's `migrations/`, beside the package; the wheel of the client has none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

import dmsae
from dmsae.errors import Conflict, NotFound, Unavailable
from dmsae.service.database import CONNECTION

log = structlog.get_logger()

ADVISORY_LOCK = int.from_bytes(b"dmsae")
"""Key of the Postgres advisory lock under which one replica migrates while the others wait."""


def migrate(database_url: str, *, revision: str = "head") -> None:
    """Bring the schema up to a revision; a second caller waits for the first, then finds nothing to do.

    Raises:
        Unavailable: Postgres does not answer.
        NotFound: this is no checkout, so there are no migrations.
        Conflict: newer code than this has migrated the database.
    """
    config = _config()
    with _locked_connection(database_url) as connection:
        before = revision_of(connection)
        if before is not None and before not in known_revisions():
            raise Conflict(
                f"The database stands at revision {before!r}, which this code does not know: "
                "newer code has migrated it. Run that version, or restore a backup.",
                revision=before,
            )
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        log.info("database_migrated", before=before, after=revision_of(connection))


def unmigrate(database_url: str, *, revision: str = "base") -> None:
    """Take the schema back to a revision; `base` drops every table with its rows.

    Raises:
        Unavailable: Postgres does not answer.
        NotFound: this is no checkout, so there are no migrations.
    """
    config = _config()
    with _locked_connection(database_url) as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
        log.info("database_unmigrated", after=revision_of(connection))


def known_revisions() -> set[str]:
    """List the revisions that this code knows.

    Raises:
        NotFound: this is no checkout, so there are no migrations.
    """
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def newest_revision() -> str | None:
    """Give the revision that this code wants.

    Raises:
        NotFound: this is no checkout, so there are no migrations.
    """
    return ScriptDirectory.from_config(_config()).get_current_head()


def is_current(session: Session) -> bool:
    """Tell whether the schema stands where this code's newest revision puts it."""
    return revision_of(session.connection()) == newest_revision()


def _config() -> Config:
    folder = Path(dmsae.__file__).resolve().parent.parent / "migrations"
    if not (folder / "env.py").is_file():
        raise NotFound(f"There are no migrations at {folder}: the service runs from a checkout or an image.")
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config


def revision_of(connection: Connection) -> str | None:
    """Give the revision that a database stands at; None if it was never migrated."""
    return MigrationContext.configure(connection).get_current_revision()


@contextmanager
def _locked_connection(database_url: str) -> Iterator[Connection]:
    """One transaction for all revisions: the lock ends with it, and a failed revision leaves no trace."""
    engine = create_engine(database_url, poolclass=NullPool, connect_args=CONNECTION)
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            yield connection
    except OperationalError as error:
        raise Unavailable("The database does not answer; try again in a moment.") from error
