"""Which one of several replicas acts? It holds a lock of Postgres for as long as its connection lives."""

import structlog
from sqlalchemy import Connection, func, select

from dmsae.service.database import Database, translated_errors

log = structlog.get_logger()

SWEEPER_LOCK = 0x646D73_02
"""Key of the advisory lock of the sweeper that acts."""

CLEANER_LOCK = 0x646D73_03
"""Key of the advisory lock of the cleaner that acts."""

WEBHOOK_LOCK = 0x646D73_05
"""Key of the advisory lock of the sender of webhooks that acts."""


class Leadership:
    """The lead among replicas that ask for the same lock; not for several threads."""

    def __init__(self, database: Database, *, key: int = SWEEPER_LOCK) -> None:
        self._database = database
        self._key = key
        self._connection: Connection | None = None

    def hold(self) -> bool:
        """Take the lead, or make sure that it is still ours; false while another replica leads.

        Raises:
            Unavailable: Postgres does not answer; who led must `resign`.
        """
        with translated_errors():
            if self._connection is not None:
                self._connection.execute(select(1))
                return True
            return self._take()

    def resign(self) -> None:
        """Give the lead back, whatever state the connection is in."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None

    def _take(self) -> bool:
        connection = self._database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if connection.scalar(select(func.pg_try_advisory_lock(self._key))):
            self._connection = connection
            log.info("leadership_taken")
            return True
        connection.close()
        return False
