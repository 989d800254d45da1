"""Which processes belong to a group, and are they gone?

A trainer leads a session of its own. Whoever stays in its session or group counts as a member, however deep.
"""

import os
import signal
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil

START_TOLERANCE_S = 1.0
"""Start times of one process may differ by so much between readings."""

POLL_S = 0.05


@dataclass(frozen=True)
class ProcessMark:
    """One process, told from a later one of the same number by when it started."""

    pid: int
    start_time: float

    def as_json(self) -> dict[str, Any]:
        """Give the mark as it stands in a lock file."""
        return asdict(self)

    def is_alive(self) -> bool:
        """Whether this very process runs."""
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.start_time) < START_TOLERANCE_S
            return is_same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def is_reused(self) -> bool:
        """Whether its number names another process by now."""
        try:
            started = psutil.Process(self.pid).create_time()
        except psutil.Error:
            return False
        return abs(started - self.start_time) >= START_TOLERANCE_S


def mark_process(pid: int) -> ProcessMark | None:
    """Mark a running process; None if there is none."""
    try:
        return ProcessMark(pid, psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def group_members(leader: int) -> list[int]:
    """List the living processes in the leader's session or group, itself included."""
    return [pid for pid in psutil.pids() if _is_member(pid, leader) and not _is_zombie(pid)]


def kill_group(leader: int, *, grace_s: float, patience_s: float = 10.0) -> bool:
    """End a group: SIGTERM, after a grace SIGKILL; say whether every member is proven gone."""
    _signal_all(leader, signal.SIGTERM)
    if _wait_until_gone(leader, grace_s):
        return True
    _signal_all(leader, signal.SIGKILL)
    return _wait_until_gone(leader, patience_s, signal_again=signal.SIGKILL)


def _is_member(pid: int, leader: int) -> bool:
    try:
        return leader in (os.getsid(pid), os.getpgid(pid))
    except (ProcessLookupError, PermissionError):
        return False


def _is_zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def _signal_all(leader: int, number: signal.Signals) -> None:
    for pid in group_members(leader):
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def _wait_until_gone(leader: int, wait_s: float, *, signal_again: signal.Signals | None = None) -> bool:
    deadline = time.monotonic() + wait_s
    while group_members(leader):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
        if signal_again is not None:
            _signal_all(leader, signal_again)
    return True
