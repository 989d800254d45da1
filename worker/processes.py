"""Which processes belong to a group, and are they gone?

A trainer leads a session of its own. Whoever stays in its session or group counts as a member, however deep.
"""

import os
import signal
import time

import psutil

POLL_S = 0.05


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
