"""Sessions over Postgres: one transaction a use case, retried as a whole, wake-ups sent after the commit.

Use cases are functions over a `Session` that flush and never commit. No transaction may stay open while a
model works, so nothing here outlives one short use case.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psycopg
import structlog
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from dmsae.errors import Unavailable

Result = TypeVar("Result")
WakeUp = Callable[[str], object]

log = structlog.get_logger()

WAKE_UPS = "wake_ups"
RETRIED = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
N_TRIES = 5


class Database:
    """An engine and what is told to sleeping workers once a transaction has committed."""

    def __init__(self, url: str, *, wake_up: WakeUp, pool_size: int = 10) -> None:
        self.engine: Engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=5,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": 5,
                "application_name": "dmsae",
                "options": "-c timezone=UTC -c lock_timeout=10s -c statement_timeout=60s"
                " -c idle_in_transaction_session_timeout=60s",
            },
        )
        self._wake_up = wake_up

    @contextmanager
    def session_scope(self) -> Iterator[Session]:
        """Open one transaction: commit at the end, roll back on any error, then send its wake-ups.

        Raises:
            Unavailable: Postgres does not answer.
        """
        try:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                yield session
        except PoolTimeout as error:
            raise Unavailable("The database has no free connection; try again in a moment.") from error
        except OperationalError as error:
            if isinstance(error.orig, RETRIED):
                raise
            raise Unavailable("The database does not answer; try again in a moment.") from error
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            raise Unavailable("The database connection was lost; try again in a moment.") from error
        for resource_class in session.info.get(WAKE_UPS, ()):
            self._wake_up(resource_class)

    def run(self, use_case: Callable[[Session], Result]) -> Result:
        """Run a use case in a transaction of its own; a deadlock or serialisation error runs it again, whole.

        Raises:
            Unavailable: Postgres does not answer.
        """
        for n_tried in range(1, N_TRIES + 1):
            try:
                with self.session_scope() as session:
                    return use_case(session)
            except DBAPIError as error:
                if not isinstance(error.orig, RETRIED) or n_tried == N_TRIES:
                    raise
                log.info("transaction_retried", n_tried=n_tried, error=type(error.orig).__name__)
                time.sleep(0.01 * 2**n_tried)
        raise AssertionError("unreachable: the last try returns or raises")

    def dispose(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()


def wake_after_commit(session: Session, resource_class: str) -> None:
    """Remember that workers of this class have work once this transaction has committed."""
    session.info.setdefault(WAKE_UPS, set()).add(resource_class)
