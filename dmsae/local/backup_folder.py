"""How a backup lies on disk: a dump, the objects by their sha256, a list of them, and last a manifest.

A folder without a manifest, or one that its manifest does not fit, is no backup.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dmsae.errors import Conflict, NotFound

FORMAT = 1
MANIFEST = "manifest.json"
DUMP = "database.dump"
OBJECT_LIST = "objects.jsonl"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileFacts(BaseModel):
    """What one file of the backup must be."""

    model_config = ConfigDict(frozen=True, strict=True)

    size_bytes: int
    sha256: Sha256


class ListedObject(FileFacts):
    """One line of the list of objects."""

    key: str
    is_upload: bool
    """Whether a user put it there in one piece, which its ETag tells."""


class Manifest(BaseModel):
    """What a backup is, written when all else is there."""

    model_config = ConfigDict(frozen=True, strict=True)

    format: int
    dmsae_version: str
    schema_revision: str
    postgres_version: int
    """Major version of the server, and of the `pg_dump` that was used."""
    created_at: str
    """When the database stood as in the dump."""
    n_rows: dict[str, int]
    """Table -> rows."""
    n_objects: int
    object_bytes: int
    missing_objects: list[str]
    """Keys that the dump names, deleted with their job before they could be copied."""
    files: dict[str, FileFacts]
    """The dump and the list of objects, which names all others."""


class BackupFolder:
    """The files of one backup."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.dump = root / DUMP
        self.object_list = root / OBJECT_LIST

    def object_file(self, sha256: str) -> Path:
        """Give where the bytes of this sha256 lie."""
        return self.root / "objects" / sha256[:2] / sha256

    def keep(self, write: Callable[[Path], object]) -> FileFacts:
        """Let an object be written to a file, put that where its sha256 says, and tell what it is."""
        fresh = self.root / "object.partial"
        write(fresh)
        _sync(fresh)
        facts = measure(fresh)
        path = self.object_file(facts.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.replace(path)
        return facts

    def objects(self) -> Iterator[ListedObject]:
        """Read the list of objects, a line at a time."""
        with self.object_list.open() as lines:
            for line in lines:
                yield ListedObject.model_validate_json(line)


@contextmanager
def new_backup_folder(target: Path) -> Iterator[BackupFolder]:
    """Make a backup beside its final place, which it takes only once it is whole.

    Raises:
        Conflict: there is something at its place, or the rest of a backup that was interrupted.
        NotFound: the folder that shall hold it does not exist.
    """
    target = target.absolute()
    partial = target.with_name(target.name + ".partial")
    if target.exists():
        raise Conflict(f"{target} exists: a backup never overwrites anything; choose another name.")
    if not target.parent.is_dir():
        raise NotFound(f"There is no folder {target.parent} to put the backup in.")
    try:
        partial.mkdir(mode=0o700)
    except FileExistsError as error:
        raise Conflict(
            f"{partial} is what an interrupted backup left, or one that is being made: delete it, or wait."
        ) from error
    try:
        yield BackupFolder(partial)
        partial.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_manifest(folder: BackupFolder, manifest: Manifest) -> None:
    """Write the manifest, after everything else has reached the disk."""
    for path in (folder.dump, folder.object_list):
        _sync(path)
    path = folder.root / MANIFEST
    path.write_text(manifest.model_dump_json(indent=2))
    _sync(path)


def read_manifest(folder: BackupFolder) -> Manifest:
    """Read a backup's manifest and check every file of it, bytes and all.

    Raises:
        NotFound: the folder holds no whole backup.
        Conflict: a file is missing or differs, or a newer version of this program made the backup.
    """
    path = folder.root / MANIFEST
    if not path.is_file():
        raise NotFound(f"{folder.root} holds no {MANIFEST}: it is no backup, or one that was never finished.")
    try:
        content = json.loads(path.read_text())
        if isinstance(content, dict) and content.get("format") != FORMAT:
            raise Conflict(f"{path} is of format {content.get('format')!r}; this code reads {FORMAT}.")
        manifest = Manifest.model_validate(content)
        for name in (DUMP, OBJECT_LIST):
            _check(folder.root / name, manifest.files[name])
        n_objects = 0
        for listed in folder.objects():
            _check(folder.object_file(listed.sha256), listed)
            n_objects += 1
    except (ValidationError, ValueError, KeyError) as error:
        raise Conflict(f"{path} is damaged: this is no whole backup.") from error
    if n_objects != manifest.n_objects:
        raise Conflict(f"{folder.object_list} lists {n_objects} objects for {manifest.n_objects}.")
    return manifest


def measure(path: Path) -> FileFacts:
    """Give size and sha256 of a file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileFacts(size_bytes=path.stat().st_size, sha256=sha256)


def now() -> str:
    """Give the time for a manifest."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _check(path: Path, expected: FileFacts) -> None:
    if not path.is_file():
        raise Conflict(f"{path} is missing: this is no whole backup.")
    if measure(path) != FileFacts(size_bytes=expected.size_bytes, sha256=expected.sha256):
        raise Conflict(f"{path} differs from what was backed up: this is no whole backup.")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
