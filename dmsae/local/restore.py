"""`dmsae restore`: a backup becomes the content of an empty database and of a bucket.

What ran or waited when the backup was made waits again: the leases of running attempts are long over, so the
sweeper queues their cycles anew. Workers register again by themselves.
"""

from contextlib import closing
from pathlib import Path

from dmsae.errors import Conflict, NotFound
from dmsae.local.backup_folder import BackupFolder, Manifest, read_manifest
from dmsae.local.postgres_tools import find_tool, restore_command, run_tool
from dmsae.service.backing_up import (
    check_counts,
    check_restorable,
    check_revision,
    clear_empty_schema,
    libpq_environment,
    server_version,
)
from dmsae.service.migrating import migrate
from dmsae.service.objects import ObjectStore
from dmsae.service.settings import Settings


def restore(source: Path, settings: Settings) -> Manifest:
    """Check a whole backup, put its objects, then its database, and bring that to this code's schema.

    A restore that was interrupted before the database can be run again.

    Raises:
        NotFound: there is no such backup, or it was never finished.
        Conflict: it is damaged or newer than this code; the database is not empty or in use; the bucket
            holds other bytes under one of its keys.
        Unavailable: a part does not answer, or there is no `pg_restore` of the server's version.
    """
    if not source.is_dir():
        raise NotFound(f"There is no backup {source.absolute()}.")
    folder, url = BackupFolder(source.absolute()), settings.database_url.get_secret_value()
    manifest = read_manifest(folder)
    check_revision(manifest.schema_revision)
    version = server_version(url)
    if version < manifest.postgres_version:
        raise Conflict(
            f"The backup was made from PostgreSQL {manifest.postgres_version}: {version} is too old."
        )
    tool = find_tool("pg_restore", version)
    check_restorable(url)
    _put_objects(folder, settings)
    clear_empty_schema(url)
    connection = libpq_environment(url)
    run_tool(restore_command(tool, source=folder.dump, database=connection["PGDATABASE"]), connection)
    check_counts(url, manifest.n_rows)
    migrate(url)
    return manifest


def _put_objects(folder: BackupFolder, settings: Settings) -> None:
    """Store what the bucket lacks; nothing that is there is written over."""
    with closing(ObjectStore(settings)) as store:
        store.ensure_bucket()
        for listed in folder.objects():
            found = store.find(listed.key)
            if found is None:
                path = folder.object_file(listed.sha256)
                store.put_file(listed.key, path, is_one_piece=listed.is_upload)
            elif found.sha256 != listed.sha256:
                raise Conflict(
                    f"The bucket {settings.s3_bucket!r} holds other bytes under {listed.key!r}: "
                    "restore into a new bucket."
                )
