"""Alembic's entry point: runs on the connection that `dmsae.service.migrating` hands over."""

from alembic import context

import dmsae.service.idempotency_tables
import dmsae.service.queue_tables
import dmsae.service.source_tables
import dmsae.service.tally_tables
import dmsae.service.upload_tables
import dmsae.service.webhook_tables  # noqa: F401 - they register their tables
from dmsae.service.tables import Table


def run() -> None:
    """Run the migrations in the caller's transaction."""
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=Table.metadata,
        compare_server_default=True,
    )
    context.run_migrations()


run()
