"""What the trainer says on its standard output: one JSON object a line, every number finite or null.

The lines themselves are the contract in `docs/architecture.md`; when they are said is up to `cycle_steps.py`.
"""

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable
from typing import Any, Literal, Protocol, TextIO

Phase = Literal["loading", "harvesting", "training", "attributing", "evaluating"]


class Report(Protocol):
    """Where a cycle tells how far it is."""

    def phase(self, phase: Phase) -> None:
        """Say what begins now."""

    def progress(self, figures: dict[str, Any]) -> None:
        """Say how far training is."""

    def event(self, kind: str, message: str, data: dict[str, Any]) -> None:
        """Say what a reader of the results has to know."""

    def checkpoint(self, step: int, path: str) -> None:
        """Say that a checkpoint is written, and where."""


class LineReport:
    """Writes each report as a line of its own and passes it on at once."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def phase(self, phase: Phase) -> None:
        """Say what begins now."""
        self._write({"type": "phase", "phase": phase})

    def progress(self, figures: dict[str, Any]) -> None:
        """Say how far training is."""
        self._write({"type": "progress", **figures})

    def event(self, kind: str, message: str, data: dict[str, Any]) -> None:
        """Say what a reader of the results has to know."""
        self._write({"type": "event", "kind": kind, "message": message, "data": data})

    def checkpoint(self, step: int, path: str) -> None:
        """Say that a checkpoint is written, and where."""
        self._write({"type": "checkpoint", "step": step, "path": path})

    def failed(self, code: str, message: str, param: str | None) -> None:
        """Say, last, why there is no result."""
        self._write({"type": "failed", "code": code, "message": message, "param": param})

    def done(self) -> None:
        """Say, last, that the result is complete."""
        self._write({"type": "done"})

    def _write(self, line: dict[str, Any]) -> None:
        self._out.write(json.dumps(finite_or_null(line), allow_nan=False) + "\n")
        self._out.flush()


class OnceReport:
    """Passes on what it is told, but for events that were told before, by this process or an earlier one."""

    def __init__(self, report: Report, told: Iterable[str] = ()) -> None:
        """Take as told the events whose `told` are given."""
        self._report = report
        self.told = list(told)
        """A digest of each event, in order."""

    def phase(self, phase: Phase) -> None:
        """Say what begins now."""
        self._report.phase(phase)

    def progress(self, figures: dict[str, Any]) -> None:
        """Say how far training is."""
        self._report.progress(figures)

    def event(self, kind: str, message: str, data: dict[str, Any]) -> None:
        """Say what a reader of the results has to know, unless the same was said before."""
        said = json.dumps([kind, message, finite_or_null(data)], sort_keys=True)
        digest = hashlib.sha256(said.encode()).hexdigest()
        if digest not in self.told:
            self.told.append(digest)
            self._report.event(kind, message, data)

    def checkpoint(self, step: int, path: str) -> None:
        """Say that a checkpoint is written, and where."""
        self._report.checkpoint(step, path)


def finite_or_null(value: Any) -> Any:
    """Copy what JSON can hold, with null in the place of every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    return value


def claim_stdout() -> TextIO:
    """Take standard output for the protocol alone.

    Mutates: file descriptor 1, which from here on is standard error, whoever writes to it.
    """
    sys.stdout.flush()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out
