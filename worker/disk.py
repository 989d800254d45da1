"""Is there room on this machine's disk to begin a cycle, or is it another worker's turn?

A worker with a full disk would break off one cycle after the other. It takes nothing while there is less room
than is kept in reserve, and after a cycle that did not fit it rests, so that others take it first.
"""

import shutil
import time
from pathlib import Path

import structlog

from dmsae.service.settings import Settings

log = structlog.get_logger()

REST_WAKES = 3
"""A worker rests for so many of the intervals after which every idle worker looks for work."""


class DiskRoom:
    """What one worker knows of its disk."""

    def __init__(self) -> None:
        self._rests_until = 0.0

    def rest(self, settings: Settings) -> None:
        """Note that a cycle did not fit."""
        self._rests_until = time.monotonic() + REST_WAKES * settings.idle_wake_s

    def may_begin(self, settings: Settings) -> bool:
        """Whether this worker may take a cycle."""
        if time.monotonic() < self._rests_until:
            return False
        for folder in (settings.work_dir, settings.cache_dir):
            free_bytes = shutil.disk_usage(_existing(folder)).free
            if free_bytes < settings.disk_reserve_bytes:
                log.warning("disk_nearly_full", folder=str(folder), free_bytes=free_bytes)
                return False
        return True


def _existing(folder: Path) -> Path:
    return next((place for place in (folder, *folder.parents) if place.exists()), Path("/"))
