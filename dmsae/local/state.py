"""What a data folder remembers of its runs: who holds it, which processes run, which ports they had."""

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from dmsae.errors import Conflict
from dmsae.local.passwords import write_private
from dmsae.local.paths import DataFolder
from dmsae.service.process_marks import ProcessMark

LEFTOVER_PATIENCE_S = 10.0


@dataclass
class Run:
    """One run of a stack, as it stands in `run.json`."""

    supervisor: ProcessMark
    url: str | None = None
    is_ready: bool = False
    children: dict[str, ProcessMark] = field(default_factory=dict)

    def write(self, folder: DataFolder) -> None:
        """Store it."""
        write_private(folder.run_file, json.dumps(asdict(self), indent=2))


def read_run(folder: DataFolder) -> Run | None:
    """Read the last run; None if there was none, or it was stopped in order, or the file is damaged."""
    try:
        content = json.loads(folder.run_file.read_text())
        return Run(
            supervisor=ProcessMark(**content["supervisor"]),
            url=content["url"],
            is_ready=content["is_ready"],
            children={name: ProcessMark(**child) for name, child in content["children"].items()},
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


class AlreadyRunning(Conflict):
    """A stack runs on this data folder."""

    code = "already_running"


@contextmanager
def hold(folder: DataFolder) -> Iterator[None]:
    """Be the folder's only supervisor; children do not inherit the lock.

    Raises:
        AlreadyRunning: another supervisor holds the folder.
    """
    descriptor = os.open(folder.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            run = read_run(folder)
            where = f" at {run.url}" if run is not None and run.is_ready else ", and is starting or stopping"
            raise AlreadyRunning(f"DMSAE is already running on {folder.root}{where}.") from error
        yield
    finally:
        os.close(descriptor)


def is_held(folder: DataFolder) -> bool:
    """Tell whether a supervisor holds the folder."""
    if not folder.lock_file.exists():
        return False
    try:
        with hold(folder):
            return False
    except AlreadyRunning:
        return True


def end_leftovers(folder: DataFolder) -> list[str]:
    """End what a killed supervisor left running, and give the names; the caller holds the folder.

    A process is ours only if pid and start time are those that our supervisor wrote down.
    """
    run = read_run(folder)
    left = {name: child for name, child in (run.children if run else {}).items() if child.find()}
    for child in left.values():
        with suppress(psutil.NoSuchProcess):
            psutil.Process(child.pid).send_signal(signal.SIGINT)
    deadline = time.monotonic() + LEFTOVER_PATIENCE_S
    while any(child.find() for child in left.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for child in left.values():
        if child.find():
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    folder.run_file.unlink(missing_ok=True)
    return list(left)


def read_ports(path: Path) -> dict[str, int]:
    """Read the remembered ports; none if the file is missing or damaged."""
    try:
        return {str(name): int(port) for name, port in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_ports(path: Path, ports: Mapping[str, int]) -> None:
    """Remember ports for the next run."""
    write_private(path, json.dumps(dict(ports), indent=2))
