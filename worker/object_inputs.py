"""Which objects of the store does an attempt read, and where do they lie on this machine?

Each object is kept once below the cache folder, for the cycles to come, and linked into a folder of the
worker that reads it. What others evict meanwhile stays there under its other name.
"""

import fcntl
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dmsae.errors import Conflict, CycleFailed, NotFound
from dmsae.service.text_objects import named_objects
from dmsae.sources import StoredObject
from worker.patient_store import PatientStore

KEPT_BYTES = 20 << 30
"""Objects that are kept on a machine; the least recently used make room, those in use stay."""


class ObjectInputs:
    """The objects that one worker's attempt reads; several workers of a machine share the kept ones."""

    def __init__(self, cache_dir: Path, worker_id: str) -> None:
        self._kept = cache_dir / "objects"
        self._held = self._kept / "held"
        self.folder = self._held / worker_id
        """Where a trainer finds them, by `StoredObject.file_name`."""
        self._lock_fd: int | None = None

    def fetch(self, spec: dict[str, Any], objects: PatientStore, *, has_stopped: Callable[[], bool]) -> None:
        """Link every object that the spec names into the folder, downloading what is not kept here.

        Raises:
            CycleFailed: `data_unreadable`, an object is gone or holds other bytes than when it was submitted.
            Unavailable: the store does not answer.
            OSError: the disk is full, or the cache folder cannot be written or linked in.
        """
        named = named_objects(spec["config"])
        if not named:
            return
        self._hold()
        for param, each in named.items():
            for index, stored in enumerate(each):
                if has_stopped():
                    return
                self._take(stored, objects, param=f"{param}.{index}")

    def release(self) -> None:
        """Let go of the objects; they stay kept until others need their room."""
        if self._lock_fd is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._lock_fd)
            self._lock_fd = None

    def _hold(self) -> None:
        """Begin with an empty folder that nobody takes for a dead worker's."""
        self.release()
        self._held.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._drop_abandoned()
        self._lock_fd = _lock(self._lock_file(self.folder), flags=fcntl.LOCK_EX)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def _take(self, stored: StoredObject, objects: PatientStore, *, param: str) -> None:
        kept, link = self._kept / stored.file_name, self.folder / stored.file_name
        if link.exists() or _link_kept(kept, link, size_bytes=stored.size_bytes):
            return
        self._make_room(stored.size_bytes or 0)
        partial = link.with_name(link.name + ".partial")
        _download(stored, objects, partial, param=param)
        partial.replace(link)
        with suppress(FileExistsError):
            os.link(link, kept)

    def _make_room(self, needed_bytes: int) -> None:
        """Evict the least recently used objects that no attempt of this machine reads."""
        facts = [(path, path.stat()) for path in self._kept.iterdir() if path.is_file()]
        excess = sum(fact.st_size for _, fact in facts) + needed_bytes - KEPT_BYTES
        for path, fact in sorted(facts, key=lambda pair: pair[1].st_mtime):
            if excess > 0 and fact.st_nlink == 1:
                path.unlink(missing_ok=True)
                excess -= fact.st_size

    def _drop_abandoned(self) -> None:
        """Remove the folders of workers that died: their locks are free."""
        for folder in self._held.iterdir():
            if not folder.is_dir():
                continue
            fd = _lock(self._lock_file(folder), flags=fcntl.LOCK_EX | fcntl.LOCK_NB)
            if fd is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(fd)

    def _lock_file(self, folder: Path) -> Path:
        return folder.with_name(folder.name + ".lock")


def _download(stored: StoredObject, objects: PatientStore, path: Path, *, param: str) -> None:
    try:
        objects.get_object_if(stored.key, stored.etag or "", path)
    except (NotFound, Conflict) as error:
        path.unlink(missing_ok=True)
        problem = "is gone" if isinstance(error, NotFound) else "holds other bytes than when it was submitted"
        raise CycleFailed(
            "data_unreadable", f"{param}.key = {stored.key!r}: the object {problem}.", param=param
        ) from error


def _link_kept(kept: Path, link: Path, *, size_bytes: int | None) -> bool:
    """Link a kept object and note its use; false if it is not there, or torn by a power failure."""
    try:
        if size_bytes is not None and kept.stat().st_size != size_bytes:
            kept.unlink()
            return False
        os.link(kept, link)
        os.utime(link)
    except FileNotFoundError:
        return False
    return True


def _lock(path: Path, *, flags: int) -> int | None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, flags)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd
