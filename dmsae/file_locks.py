"""How do processes of one machine keep out of each other's way, without a lock outliving its holder?

The kernel lets go of a lock when the process that holds it ends, however it ends.
"""

import errno
import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POLL_S = 0.05
UNKNOWN = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""What file systems say that know no locks: there, everybody holds every lock."""


class Lock:
    """A lock that is held until it is let go of."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let go of it; again is no error."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def try_lock(file: Path, *, is_shared: bool) -> Lock | None:
    """Take a lock if it is free; None where it is not.

    Raises: OSError where its file cannot be made.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno not in UNKNOWN:
                os.close(descriptor)
                raise
        if _is_same(descriptor, file):
            return Lock(descriptor)
        os.close(descriptor)  # its last holder deleted it: a lock on a file that nobody finds is none


def wait_for_lock(
    file: Path, *, is_shared: bool, patience_s: float, is_stopped: Callable[[], bool] = lambda: False
) -> Lock | None:
    """Take a lock as soon as it is free; None where that takes too long or nobody wants it any more.

    Raises: OSError where its file cannot be made.
    """
    until = time.monotonic() + patience_s
    while True:
        lock = try_lock(file, is_shared=is_shared)
        if lock is not None or time.monotonic() > until or is_stopped():
            return lock
        time.sleep(POLL_S)


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Hold a lock that nobody else holds, after whoever does has ended or let go of it.

    Raises: OSError where its file cannot be made.
    """
    lock = wait_for_lock(file, is_shared=False, patience_s=math.inf)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def deleting(file: Path) -> Iterator[bool]:
    """Hold a lock that nobody else holds, and delete its file at the end; False where somebody holds it."""
    lock = try_lock(file, is_shared=False)
    if lock is None:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            file.unlink()
        lock.release()


def _is_same(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
