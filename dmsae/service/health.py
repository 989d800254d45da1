"""Which of the parts that the service stands on answer right now?

Each is asked in a thread of its own that may hang without holding up the answer.
"""

import threading
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

from sqlalchemy import select

from dmsae.errors import DmsaeError, Unavailable
from dmsae.service.database import Database
from dmsae.service.migrating import is_current
from dmsae.service.objects import ObjectStore
from dmsae.service.queue import ping_broker
from dmsae.service.settings import Settings

TIMEOUT_S = 4.0

Status = Literal["ok", "failed"]


class PartHealth(NamedTuple):
    """Whether one part answers, and what is wrong if not."""

    status: Status
    detail: str | None = None


def check_parts(
    settings: Settings, database: Database, store: ObjectStore, *, timeout_s: float = TIMEOUT_S
) -> dict[str, PartHealth]:
    """Ask Postgres, its migrations, Redis and S3, all at once, for at most `timeout_s` together."""
    checks: dict[str, Callable[[], None]] = {
        "postgres": lambda: _check_database(database),
        "migrations": lambda: _check_migrations(database),
        "redis": lambda: _check_broker(settings),
        "s3": store.check,
    }
    found: dict[str, PartHealth] = {}
    threads = [
        threading.Thread(target=_note, args=(found, name, check), name=f"check-{name}", daemon=True)
        for name, check in checks.items()
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = PartHealth("failed", f"It did not answer within {timeout_s:g} s.")
    return {name: found.get(name, late) for name in checks}


def _note(found: dict[str, PartHealth], name: str, check: Callable[[], None]) -> None:
    try:
        check()
    except DmsaeError as error:
        found[name] = PartHealth("failed", error.message)
    else:
        found[name] = PartHealth("ok")


def _check_database(database: Database) -> None:
    with database.session_scope() as session:
        session.execute(select(1))


def _check_migrations(database: Database) -> None:
    with database.session_scope() as session:
        if not is_current(session):
            raise Unavailable("The database is not at this code's newest revision: run `dmsae migrate`.")


def _check_broker(settings: Settings) -> None:
    if not ping_broker(settings.broker_url):
        raise Unavailable("The broker does not answer; jobs are still taken, and start some seconds later.")
