"""Sessions over Postgres: one transaction a use case, retried as a whole, wake-ups sent after the commit.

Use cases are functions over a `Session` that flush and never commit. No transaction may stay open while a
model works, so nothing here outlives one short use case. SQLAlchemy's errors end here: callers see ours.
"""

import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import psycopg
import structlog
from sqlalchemy import Engine, QueuePool, create_engine, event
from sqlalchemy.exc import DBAPIError, InvalidatePoolError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from dmsae.errors import DatabaseRefused, DmsaeError, Unavailable

Result = TypeVar("Result")
Transaction: TypeAlias = Session
"""What a use case works in, for those who only pass it on."""
UseCase: TypeAlias = Callable[[Transaction], Result]
WakeUp: TypeAlias = Callable[[str], object]

log = structlog.get_logger()

APPLICATION_NAME = "dmsae"
"""How Postgres lists the connections of API, workers and sweeper."""
WAKE_UPS = "wake_ups"
LAY_THERE = "lay_there"
RETRIED = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
N_TRIES = 5
CONNECTION = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""So a peer that vanished without a word is noticed within about 10 s, well before a lease runs out."""
NEVER_FITS = "54"
"""SQLSTATE class of what exceeds a limit of Postgres, though psycopg calls it operational: no outage."""
READ_ONLY = "25006"
"""SQLSTATE of a write on a standby, as while a database fails over: an outage."""


class PoolUse(NamedTuple):
    """The connections of one process."""

    n_in_use: int
    n_idle: int
    n_most: int


class Database:
    """An engine and what is told to sleeping workers once a transaction has committed."""

    def __init__(self, url: str, *, wake_up: WakeUp, pool_size: int = 10) -> None:
        self.engine = _make_engine(url, pool_size)
        self._engine_alone = _make_engine(url, pool_size, isolation_level="AUTOCOMMIT")
        """With a pool of its own, whose connections need not be told each time."""
        self._wake_up = wake_up

    @contextmanager
    def session_scope(self) -> Iterator[Session]:
        """Open one transaction: commit at the end, roll back on any error, then send its wake-ups.

        Raises:
            Unavailable: Postgres does not answer, or other transactions stood in the way.
            DatabaseRefused: Postgres answers, and refuses what was asked.
        """
        with translated_errors(), self._transaction() as session:
            yield session

    def run(self, use_case: UseCase[Result]) -> Result:
        """Run a use case in a transaction of its own; a deadlock or serialisation error runs it again, whole.

        Raises:
            Unavailable: Postgres does not answer, or other transactions stood in the way every time.
            DatabaseRefused: Postgres answers, and refuses what was asked.
        """
        with translated_errors():
            return _retried(lambda: self._run_once(use_case))

    def run_alone(self, use_case: UseCase[Result]) -> Result:
        """Run a use case of which each statement is a transaction of its own; its wake-ups are not sent.

        So no lock that a statement takes is held while an answer travels.

        Raises:
            Unavailable: Postgres does not answer, or other transactions stood in the way every time.
            DatabaseRefused: Postgres answers, and refuses what was asked.
        """
        with translated_errors():
            return _retried(lambda: self._run_alone_once(use_case))

    def pool_use(self) -> PoolUse:
        """Tell how many connections there are, and may be, in that pool of which more are in use."""
        pools = [cast("QueuePool", engine.pool) for engine in self._engines]
        return max(PoolUse(pool.checkedout(), pool.checkedin(), pool.size()) for pool in pools)

    def dispose(self) -> None:
        """Close all pooled connections."""
        for engine in self._engines:
            engine.dispose()

    @property
    def _engines(self) -> tuple[Engine, Engine]:
        return self.engine, self._engine_alone

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session
        for resource_class in session.info.get(WAKE_UPS, ()):
            self._wake_up(resource_class)

    def _run_once(self, use_case: UseCase[Result]) -> Result:
        with self._transaction() as session:
            return use_case(session)

    def _run_alone_once(self, use_case: UseCase[Result]) -> Result:
        with Session(self._engine_alone, expire_on_commit=False) as session:
            return use_case(session)


def _make_engine(url: str, pool_size: int, **options: Any) -> Engine:
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        hide_parameters=True,
        connect_args={
            **CONNECTION,
            "application_name": APPLICATION_NAME,
            "options": "-c timezone=UTC -c lock_timeout=10s -c statement_timeout=60s"
            " -c idle_in_transaction_session_timeout=60s",
        },
        **options,
    )
    event.listen(engine, "checkout", _refuse_ended)
    return engine


def _refuse_ended(driver: psycopg.Connection, record: ConnectionPoolEntry, _: object) -> None:
    """Have the pool make a connection anew that was ended while it lay there.

    One that was made for this very use is taken as it is: refusing that too would be an error of the pool's,
    where Postgres is away and the first statement says so.

    Raises:
        InvalidatePoolError: this one was, and so most likely all others of its age.
    """
    if not record.info.get(LAY_THERE):
        record.info[LAY_THERE] = True
        return
    if driver.closed:
        raise InvalidatePoolError()
    end = select.poll()
    end.register(driver.fileno(), select.POLLIN)
    if end.poll(0):  # an idle one has nothing to be read but its end: no round trip is needed to find out
        raise InvalidatePoolError()


def _retried(run: Callable[[], Result]) -> Result:
    for n_tried in range(1, N_TRIES):
        try:
            return run()
        except (DBAPIError, psycopg.Error) as error:
            foreign = _foreign(error)
            if not isinstance(foreign, RETRIED):
                raise
            log.info("transaction_retried", n_tried=n_tried, error=type(foreign).__name__)
            time.sleep(0.01 * 2**n_tried)
    return run()


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn SQLAlchemy's errors, and its driver's, into ours, which tell neither SQL nor values.

    Raises:
        Unavailable: Postgres does not answer, or other transactions stood in the way.
        DatabaseRefused: Postgres answers, and refuses what was asked.
    """
    try:
        yield
    except PoolTimeout as error:
        raise Unavailable("The database has no free connection; try again in a moment.") from error
    except (StatementError, psycopg.Error) as error:
        raise _translate(error) from error


def _foreign(error: StatementError | psycopg.Error) -> BaseException | None:
    """Give what the driver raised."""
    return error.orig if isinstance(error, StatementError) else error


def _translate(error: StatementError | psycopg.Error) -> DmsaeError:
    foreign = _foreign(error)
    state = getattr(foreign, "sqlstate", None) or ""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return Unavailable("The database connection was lost; try again in a moment.")
    if isinstance(foreign, RETRIED):
        return Unavailable("Too many others change the same; try again in a moment.")
    is_outage = isinstance(foreign, psycopg.OperationalError) and not state.startswith(NEVER_FITS)
    if is_outage or state == READ_ONLY:
        return Unavailable("The database does not answer; try again in a moment.")
    constraint = foreign.diag.constraint_name if isinstance(foreign, psycopg.Error) else None
    told = {"kind": type(foreign).__name__, "sqlstate": state or None, "constraint": constraint}
    log.error("database_refused", **told)
    return DatabaseRefused(**told)


def wake_after_commit(session: Session, resource_class: str) -> None:
    """Remember that workers of this class have work once this transaction has committed."""
    session.info.setdefault(WAKE_UPS, set()).add(resource_class)
