"""What a cycle reports, kept for a test to look at."""

from typing import Any


class Recorder:
    """A `dmsae.reporting.Report` that keeps all it is told; of each kind of event the last one."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.steps: list[dict[str, Any]] = []
        self.events: dict[str, tuple[str, dict[str, Any]]] = {}
        self.checkpoints: list[tuple[int, str]] = []

    def phase(self, phase: str) -> None:
        self.phases.append(phase)

    def progress(self, figures: dict[str, Any]) -> None:
        self.steps.append(figures)

    def event(self, kind: str, message: str, data: dict[str, Any]) -> None:
        self.events[kind] = (message, data)

    def checkpoint(self, step: int, path: str) -> None:
        self.checkpoints.append((step, path))
