"""How does a checkpoint get from a trainer into the store, and from there to an attempt that goes on from it?

Uploads have a thread of their own: neither cancelling nor the trainer waits for them. What becomes of the row
is left to the next report.
"""

import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dmsae.errors import DmsaeError, NotFound, Unavailable
from dmsae.service.checkpoints import ResumePoint, StoredCheckpoint
from dmsae.service.objects import BytesDiffer
from dmsae.service.plain_json import read_plain_json
from dmsae.service.states import Held
from worker.patient_store import PatientStore
from worker.protocol import CheckpointMessage
from worker.threads import thread_of
from worker.work_folder import MANIFEST, upload_folder

log = structlog.get_logger()

WATCH_S = 0.05
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class CheckpointUnusable(DmsaeError):
    """What the store holds of this checkpoint is not what was put there."""


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(pattern=f"^{FILE_NAME.pattern}$")
    sha256: str


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    files: list[_File] = Field(min_length=1)


class CheckpointUploads:
    """Stores what a trainer writes, the newest first, and tells what was stored; use it once."""

    def __init__(
        self,
        held: Held,
        objects: PatientStore,
        *,
        folder: Path,
        tell: Callable[[StoredCheckpoint], None],
        has_stopped: Callable[[], bool],
    ) -> None:
        self._held, self._objects, self._folder = held, objects, folder
        self._tell, self._has_stopped = tell, has_stopped
        self._changed = threading.Condition()
        self._waiting: CheckpointMessage | None = None
        self._is_busy = self._is_closed = False
        self._thread: threading.Thread | None = None
        self._abandoned = threading.Event()
        self.newest_step = -1
        """Of what the trainer has written."""
        self.stored_step = -1
        """Of what was stored whole."""

    def offer(self, written: CheckpointMessage) -> None:
        """Take a checkpoint that lies in the folder; one that still waits gives way to it."""
        if Path(written.path).parent != self._folder:
            log.warning("checkpoint_elsewhere", step=written.step)
            return
        with self._changed:
            if self._is_closed:
                return
            if self._waiting is not None:
                shutil.rmtree(self._waiting.path, ignore_errors=True)
            self._waiting, self.newest_step = written, written.step
            if self._thread is None:
                self._thread = thread_of(self._run, name="checkpoints")
                self._thread.start()
            self._changed.notify()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or is under way."""
        with self._changed:
            return self._waiting is None and not self._is_busy

    @property
    def is_abandoned(self) -> bool:
        """Whether even what is under way is broken off."""
        return self._abandoned.is_set()

    def close(self, *, patience_s: float) -> None:
        """Take nothing more; let what was offered be stored for so long, then break it off and tell."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(patience_s)
        self._abandoned.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (written := self._next()) is not None:
            try:
                self._upload(written)
            except (Unavailable, OSError) as error:
                log.warning("checkpoint_not_stored", step=written.step, error=type(error).__name__)
            finally:
                shutil.rmtree(written.path, ignore_errors=True)
                self._is_busy = False

    def _next(self) -> CheckpointMessage | None:
        with self._changed:
            while self._waiting is None and not self._is_closed:
                self._changed.wait()
            written, self._waiting = self._waiting, None
            self._is_busy = written is not None
            return written

    def _upload(self, written: CheckpointMessage) -> None:
        """Store one checkpoint; where that breaks off, tell at least under which prefix something lies."""
        prefix = f"{self._held.object_prefix}checkpoints/{written.step}/"
        stored, started = StoredCheckpoint(written.step, prefix, None), time.monotonic()
        try:
            files = upload_folder(
                self._objects,
                Path(written.path),
                prefix,
                has_stopped=lambda: self._abandoned.is_set() or self._has_stopped(),
            )
            if files:
                stored = StoredCheckpoint(written.step, prefix, files[-1].sha256)
                self.stored_step = written.step
                size_bytes, seconds = sum(file.size_bytes for file in files), time.monotonic() - started
                log.info(
                    "checkpoint_stored", step=written.step, size_bytes=size_bytes, seconds=round(seconds, 2)
                )
        finally:
            self._tell(stored)


def fetch_checkpoint(point: ResumePoint, folder: Path, objects: PatientStore) -> None:
    """Fetch all files of a checkpoint into a new folder, each compared with its sha256.

    Raises:
        CheckpointUnusable: something is missing, or is not what was stored.
        Unavailable: the store does not answer.
        OSError: the disk is full or the folder cannot be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    manifest = folder / MANIFEST
    _fetch(objects, point.object_prefix, manifest, sha256=point.manifest_sha256)
    try:
        files = _Manifest.model_validate(read_plain_json(manifest.read_bytes())).files
    except (ValidationError, ValueError, RecursionError) as error:
        raise CheckpointUnusable("its manifest is none") from error
    for file in files:
        _fetch(objects, point.object_prefix, folder / file.name, sha256=file.sha256)
    manifest.unlink()


def _fetch(objects: PatientStore, prefix: str, path: Path, *, sha256: str) -> None:
    try:
        objects.get_file(prefix + path.name, path, sha256=sha256)
    except NotFound as error:
        raise CheckpointUnusable(f"{path.name} is gone from the store") from error
    except BytesDiffer as error:
        raise CheckpointUnusable(f"the store holds other bytes of {path.name} than were put there") from error
