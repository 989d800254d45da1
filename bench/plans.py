"""How does Postgres do what a use case asks it? The very statements with their values, explained."""

import re
from collections.abc import Callable, Collection
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session

from dmsae.service.database import Database

READ_WHOLE = re.compile(r"Seq Scan on (\w+)")


def plans_of(database: Database, ask: Callable[[Session], object]) -> list[str]:
    """Ask something in a transaction, and give the plan of each of its statements."""
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        asked.append((statement, values))

    with database.session_scope() as session:
        connection = session.connection()
        event.listen(connection, "before_cursor_execute", note)
        ask(session)
        event.remove(connection, "before_cursor_execute", note)
        with session.connection().connection.cursor() as cursor:
            return [
                "\n".join(line for (line,) in cursor.execute(f"EXPLAIN {statement}", values).fetchall())
                for statement, values in asked
            ]


def read_whole(plans: Collection[str]) -> set[str]:
    """Name the tables that these plans read from end to end."""
    return {table for plan in plans for table in READ_WHOLE.findall(plan)}
