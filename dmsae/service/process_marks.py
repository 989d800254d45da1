"""Which process was that? A pid is used again; with the moment of its start it names one process for good."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import psutil

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
TOLERANCE_S = 1.5
"""The system tells when it booted to the second."""


@dataclass(frozen=True)
class ProcessMark:
    """One process, told from a later one of the same number, whatever the clock is set to meanwhile."""

    pid: int
    started_s: float
    """From when the host booted."""
    boot_id: str = ""
    """Which boot; empty where the system names none."""

    @classmethod
    def of(cls, pid: int) -> Self:
        """Mark the process that has this pid now.

        Raises:
            psutil.NoSuchProcess: there is none.
        """
        return cls(pid, _started_s(psutil.Process(pid)), _boot_id())

    def as_json(self) -> dict[str, Any]:
        """Give the mark as it stands in a file."""
        return asdict(self)

    def find(self) -> psutil.Process | None:
        """Find this very process if it still runs; a zombie does not."""
        try:
            process = psutil.Process(self.pid)
            is_alive = self._names(process) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None
        return process if is_alive else None

    def is_reused(self) -> bool:
        """Whether its number names another process by now."""
        try:
            return not self._names(psutil.Process(self.pid))
        except psutil.Error:
            return False

    def _names(self, process: psutil.Process) -> bool:
        is_near = abs(_started_s(process) - self.started_s) < TOLERANCE_S
        return is_near and self.boot_id == _boot_id()


def _started_s(process: psutil.Process) -> float:
    """Give a start since boot: both times move when the clock is set, their difference does not."""
    return float(process.create_time() - psutil.boot_time())


def _boot_id() -> str:
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
