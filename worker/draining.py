"""When is this worker to take nothing new, hand its cycle back and end, without anybody's signal?

Either somebody marked it so in the database, or its time is up: when an allocation of Slurm ends is known
before. Both become the SIGTERM on which it ends anyway.
"""

import os
import re
import signal
import threading
import time

import structlog

from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.service.settings import Settings

log = structlog.get_logger()

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
RECORDING_S = 5.0
"""How long after the grace and the end of the trainer the hand-back may take."""


class Grace:
    """How long an attempt may still take once its worker is told to end, from when it is first asked."""

    def __init__(self, draining: threading.Event, seconds: float) -> None:
        self._draining, self._seconds = draining, seconds
        self._ends_at: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether what is not done by now is left to another worker."""
        if not self._draining.is_set():
            return False
        if self._ends_at is None:
            self._ends_at = time.monotonic() + self._seconds
        return time.monotonic() >= self._ends_at


def stop_this_worker() -> None:
    """Have Celery end this process in order, as if somebody had sent SIGTERM."""
    os.kill(os.getpid(), signal.SIGTERM)


def parse_runtime(text: str) -> float:
    """Read a time such as `110m`, `2h`, `1d`, or as Slurm writes it: `2:00:00`, `1-12:00:00`; give seconds.

    Raises:
        InvalidConfig: it is none, or has no unit: a bare number is minutes to Slurm and seconds to others.
    """
    if (found := re.fullmatch(r"([0-9]{1,9})([smhd])", text)) is not None:
        return float(int(found[1]) * UNITS_S[found[2]])
    found = re.fullmatch(r"(?:([0-9]{1,4})-)?([0-9]{1,4}):([0-5][0-9]):([0-5][0-9])", text)
    if found is None:
        rule = "must be a time such as 110m, 2h, 2:00:00 or 1-12:00:00"
        raise InvalidConfig([FieldProblem("max_runtime", text, rule)])
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(days * 86_400 + hours * 3600 + minutes * 60 + seconds)


def stop_after(runtime_s: float, settings: Settings) -> threading.Timer:
    """Begin to end this worker so early that all is handed back once `runtime_s` seconds have gone by."""
    needed_s = settings.drain_grace_s + settings.kill_grace_s + RECORDING_S
    timer = threading.Timer(max(0.0, runtime_s - needed_s), _stop, args=(runtime_s,))
    timer.daemon = True
    timer.start()
    return timer


def _stop(runtime_s: float) -> None:
    log.info("runtime_over", max_runtime_s=runtime_s)
    stop_this_worker()
