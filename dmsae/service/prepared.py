"""Queries that nearly every request sends: put into words once, and sent by the driver itself.

SQLAlchemy's way from a query to one row takes several times what the driver and Postgres do. Errors are the
driver's own: `database.py` knows them too.
"""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar, cast

import psycopg
from sqlalchemy import Select
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.orm import Session

Row = TypeVar("Row")


class _Words(NamedTuple):
    """A query as the driver takes it."""

    sql: str
    constants: dict[str, Any]


class Prepared(Generic[Row]):
    """A query for at most one row; `make` gets the values of its columns, in their order."""

    def __init__(self, query: Select[*tuple[Any, ...]], make: Callable[[Iterable[Any]], Row]) -> None:
        self._query = query
        self._make = make

    def find(self, session: Session, **values: Any) -> Row | None:
        """Give the row as the session's transaction sees it now; None if there is none."""
        session.flush()
        driver = cast("psycopg.Connection", session.connection().connection.driver_connection)
        sql, constants = self._words
        found = driver.execute(sql, {**constants, **values}).fetchone()
        return None if found is None else self._make(found)

    @cached_property
    def _words(self) -> _Words:
        dialect = PGDialect_psycopg()  # type: ignore[no-untyped-call]
        words = self._query.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
        return _Words(str(words), dict(words.params))
