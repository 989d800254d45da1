"""`dmsae backup`: everything that a lab cannot make again, the database and the objects that it names.

Redis holds only wake-ups, and caches can be made again: neither is in a backup, nor are passwords.
"""

import importlib.metadata
import json
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import structlog

from dmsae.errors import NotFound, Unavailable
from dmsae.local.backup_folder import (
    DUMP,
    FORMAT,
    OBJECT_LIST,
    BackupFolder,
    ListedObject,
    Manifest,
    measure,
    new_backup_folder,
    now,
    write_manifest,
)
from dmsae.local.postgres_tools import dump_command, find_tool, run_tool
from dmsae.service.backing_up import (
    NamedObject,
    Snapshot,
    is_named,
    libpq_environment,
    open_snapshot,
    server_version,
)
from dmsae.service.objects import ObjectStore
from dmsae.service.settings import Settings

NAMED = "named.jsonl"

log = structlog.get_logger()


@dataclass
class Copied:
    """What of the store is in the backup."""

    n_objects: int = 0
    n_bytes: int = 0
    missing: list[str] = field(default_factory=list)


def back_up(target: Path, settings: Settings) -> Manifest:
    """Write a backup of database and objects to a new folder, while everything goes on working.

    The objects are those that the dump's own snapshot names; they are never changed, so that copying them
    later gives the same bytes.

    Raises:
        Conflict: the target exists, or the database cannot be backed up.
        NotFound: the store lacks an object that the database still names.
        Unavailable: a part does not answer, or there is no `pg_dump` of the server's version.
    """
    url = settings.database_url.get_secret_value()
    version = server_version(url)
    tool = find_tool("pg_dump", version)
    with new_backup_folder(target) as folder:
        with open_snapshot(url) as snapshot:
            created_at, n_rows, revision = now(), snapshot.count_rows(), snapshot.revision
            run_tool(dump_command(tool, snapshot_id=snapshot.id, target=folder.dump), libpq_environment(url))
            named = _write_named(folder, snapshot)
        copied = _copy_objects(folder, named, settings)
        named.unlink()
        manifest = Manifest(
            format=FORMAT,
            dmsae_version=importlib.metadata.version("dmsae"),
            schema_revision=revision,
            postgres_version=version,
            created_at=created_at,
            n_rows=n_rows,
            n_objects=copied.n_objects,
            object_bytes=copied.n_bytes,
            missing_objects=copied.missing,
            files={DUMP: measure(folder.dump), OBJECT_LIST: measure(folder.object_list)},
        )
        write_manifest(folder, manifest)
    return manifest


def _write_named(folder: BackupFolder, snapshot: Snapshot) -> Path:
    """Note what the snapshot names, so that no transaction stays open while bytes are copied."""
    path = folder.root / NAMED
    with path.open("w") as file:
        file.writelines(json.dumps(asdict(named)) + "\n" for named in snapshot.named_objects())
    return path


def _copy_objects(folder: BackupFolder, named: Path, settings: Settings) -> Copied:
    """Copy every object that was named, and list it."""
    copied = Copied()
    with (
        closing(ObjectStore(settings)) as store,
        named.open() as lines,
        folder.object_list.open("w") as listed,
    ):
        for line in lines:
            wanted = NamedObject(**json.loads(line))
            found = _copy(folder, store, wanted)
            if found is not None:
                listed.write(found.model_dump_json() + "\n")
                copied.n_objects += 1
                copied.n_bytes += found.size_bytes
            elif is_named(settings.database_url.get_secret_value(), wanted.key):
                raise NotFound(f"The object store has lost {wanted.key!r}, which the database names.")
            elif wanted.is_expected:
                log.warning("object_deleted_meanwhile", key=wanted.key)
                copied.missing.append(wanted.key)
    return copied


def _copy(folder: BackupFolder, store: ObjectStore, wanted: NamedObject) -> ListedObject | None:
    """Copy one object unless its bytes are here already; None if the store has none."""
    known = wanted.sha256
    path = folder.object_file(known) if known else None
    if path is None or not path.is_file():
        try:
            facts = folder.keep(lambda fresh: store.fetch_file(wanted.key, fresh))
        except NotFound:
            return None
    else:
        facts = measure(path)
    if known not in (None, facts.sha256):
        raise Unavailable(f"The object store holds other bytes than were stored under {wanted.key!r}.")
    return ListedObject(
        key=wanted.key, is_upload=known is None, size_bytes=facts.size_bytes, sha256=facts.sha256
    )
