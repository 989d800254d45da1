"""Is this device free? One file lock for each device, taken before anything is claimed.

The trainer inherits the lock, so that a trainer which outlives its supervisor keeps its device. The file
names both; what a dead supervisor left behind is killed, and nothing is claimed until it is gone.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from dmsae.service.process_marks import ProcessMark
from worker.processes import kill_group

log = structlog.get_logger()

RELEASE_PATIENCE_S = 5.0
POLL_S = 0.05


class DeviceLock:
    """A held device."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._supervisor = ProcessMark.of(os.getpid())
        self._write(None)

    def name_trainer(self, pid: int) -> None:
        """Write down which process leads the group that now uses the device."""
        self._write(ProcessMark.of(pid))

    def release(self) -> None:
        """Free the device for whoever is next; only once the trainer's group is gone."""
        os.ftruncate(self.fd, 0)
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def _write(self, trainer: ProcessMark | None) -> None:
        marks = {"supervisor": self._supervisor, "trainer": trainer}
        content = json.dumps({name: mark.as_json() if mark else None for name, mark in marks.items()})
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, content.encode(), 0)


@contextmanager
def hold_device(lock_dir: Path, device: str, *, kill_grace_s: float) -> Iterator[DeviceLock | None]:
    """Hold a device; None while a living supervisor has it, or a leftover of a dead one cannot be ended."""
    lock_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = lock_dir / f"{device.replace(':', '-')}.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if not (_try_lock(fd) or _clear_leftover(fd, device, kill_grace_s=kill_grace_s)):
            yield None
            return
        lock = DeviceLock(fd)
        yield lock
        lock.release()
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clear_leftover(fd: int, device: str, *, kill_grace_s: float) -> bool:
    """Kill the group that a dead supervisor left and take the lock; false if a living one holds it."""
    marks = _read_marks(fd)
    supervisor, trainer = marks.get("supervisor"), marks.get("trainer")
    if supervisor is None or supervisor.find() is not None:
        return False
    if trainer is not None and not trainer.is_reused():
        log.warning("leftover_trainer_killed", device=device, pid=trainer.pid)
        kill_group(trainer.pid, grace_s=kill_grace_s)
    deadline = time.monotonic() + RELEASE_PATIENCE_S
    while not _try_lock(fd):
        if time.monotonic() >= deadline:
            log.error("device_still_held", device=device)
            return False
        time.sleep(POLL_S)
    return True


def _read_marks(fd: int) -> dict[str, ProcessMark]:
    try:
        content: dict[str, Any] = json.loads(os.pread(fd, 4096, 0))
        return {name: ProcessMark(**mark) for name, mark in content.items() if mark}
    except (ValueError, TypeError, AttributeError):
        return {}
