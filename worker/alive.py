"""Does a process that has no port to ask still turn? A file's age tells: `python -m worker.alive cuda:0`.

It tells nothing of Postgres or the broker. Training goes on without them, so a supervisor that ends whoever
is unhealthy must not end a worker because they are away.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import structlog

log = structlog.get_logger()

SWEEPER = "sweeper"
WITHIN_S = 120.0
"""Longer than any round of a worker's timer or of the sweeper takes while all time-outs run out."""


def main(arguments: list[str] | None = None) -> None:
    """Exit with status 0 if the process turns, else with 1 and a sentence."""
    parser = argparse.ArgumentParser(prog="python -m worker.alive", description=__doc__)
    parser.add_argument("name", help="the worker's device, such as cuda:0, or `sweeper`")
    parser.add_argument("--within", type=float, default=WITHIN_S, help="seconds (default: %(default)s)")
    given = parser.parse_args(arguments)
    age_s = seconds_since(given.name)
    if age_s is None or age_s > given.within:
        what = "has not begun" if age_s is None else f"has not turned for {age_s:.0f} s"
        sys.exit(f"{given.name} {what}.")


def note_alive(name: str) -> None:
    """Note that a worker's timer or the sweeper turned just now; a full disk does not stop it."""
    path = _file_of(name)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.touch()
    except OSError as error:
        log.warning("alive_not_noted", name=name, error=error.strerror)


def seconds_since(name: str) -> float | None:
    """Give how long ago it was last noted; None if never."""
    try:
        return max(0.0, time.time() - _file_of(name).stat().st_mtime)
    except OSError:
        return None


def _file_of(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"dmsae-alive-{os.getuid()}" / name.replace(":", "-")


if __name__ == "__main__":
    main()
