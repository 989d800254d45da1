"""What has the trainer said so far? Its messages, and the redacted end of its other output; bounded."""

import threading
from collections import deque
from collections.abc import Callable
from typing import BinaryIO

from dmsae.service.checkpoints import StoredCheckpoint
from dmsae.service.leases import Report
from worker.protocol import (
    CheckpointMessage,
    DoneMessage,
    EventMessage,
    FailedMessage,
    PhaseMessage,
    ProgressMessage,
    parse_line,
)
from worker.redacting import Redactor

LINE_BYTES = 1 << 20
"""A longer line is no message; it is read in pieces."""
TAIL_BYTES = 64 << 10
CHUNK_BYTES = 8 << 10
N_POINTS = 1000
N_EVENTS = 200


class TrainerOutput:
    """Collects from the reading threads and gives the supervisor's heartbeat what is new."""

    def __init__(
        self, redact: Redactor, *, on_checkpoint: Callable[[CheckpointMessage], None] = lambda _: None
    ) -> None:
        """Hand what is said of a checkpoint to `on_checkpoint`, in a thread that reads."""
        self._redact = redact
        self._on_checkpoint = on_checkpoint
        self._lock = threading.Lock()
        self._phase: str | None = None
        self._checkpoints: list[StoredCheckpoint] = []
        self._progress: dict[str, object] | None = None
        self._points: deque[dict[str, object]] = deque(maxlen=N_POINTS)
        self._events: deque[dict[str, object]] = deque(maxlen=N_EVENTS)
        self._tail = bytearray()
        self._is_tail_new = False
        self.ending: DoneMessage | FailedMessage | None = None
        self.last_phase = "starting"
        """The phase that was said last, whether or not that is reported."""

    def read_messages(self, stream: BinaryIO) -> None:
        """Read standard output to its end; lines that are no message go to the tail."""
        while line := stream.readline(LINE_BYTES):
            if not self.take_line(line):
                self._add_to_tail(line)

    def read_chatter(self, stream: BinaryIO) -> None:
        """Read standard error to its end, keeping its tail."""
        while chunk := stream.readline(CHUNK_BYTES):
            self._add_to_tail(chunk)

    def take_line(self, line: bytes) -> bool:
        """Take one line of the protocol; false if it is no message."""
        message = parse_line(line)
        with self._lock:
            match message:
                case PhaseMessage():
                    self._phase = self.last_phase = message.phase
                case ProgressMessage():
                    self._progress = message.model_dump(exclude={"type"})
                    if message.step > 0:
                        self._points.append(self._progress)
                case EventMessage():
                    said = message.model_dump(include={"kind", "data", "message"})
                    self._events.append(self._redact.all_of(said))
                case DoneMessage() | FailedMessage():
                    self.ending = message
        if isinstance(message, CheckpointMessage):
            self._on_checkpoint(message)
        return message is not None

    def add_event(self, kind: str, message: str, data: dict[str, object]) -> None:
        """Note an event that the supervisor itself has to tell."""
        with self._lock:
            self._events.append({"kind": kind, "message": message, "data": data})

    def add_checkpoint(self, stored: StoredCheckpoint) -> None:
        """Note a checkpoint whose upload has ended."""
        with self._lock:
            self._checkpoints.append(stored)

    def set_phase(self, phase: str) -> None:
        """Note a phase that the supervisor itself begins."""
        with self._lock:
            self._phase = phase

    def take_report(self) -> Report:
        """Give what is new since the last report."""
        with self._lock:
            report = Report(
                phase=self._phase,
                progress=self._progress,
                points=tuple(self._points),
                events=tuple(self._events),
                log_tail=self._read_tail() if self._is_tail_new else None,
                checkpoints=tuple(self._checkpoints),
            )
            self._phase = self._progress = None
            self._points.clear()
            self._events.clear()
            self._checkpoints.clear()
            self._is_tail_new = False
            return report

    def give_back(self, report: Report) -> None:
        """Put back a report that could not be stored; newer words win."""
        with self._lock:
            self._phase = self._phase or report.phase
            self._progress = self._progress or report.progress
            self._points = deque([*report.points, *self._points], maxlen=N_POINTS)
            self._events = deque([*report.events, *self._events], maxlen=N_EVENTS)
            self._checkpoints = [*report.checkpoints, *self._checkpoints]
            self._is_tail_new = self._is_tail_new or report.log_tail is not None

    def tail(self) -> str:
        """Give the end of what the trainer printed, secrets removed."""
        with self._lock:
            return self._read_tail()

    def redacted(self, text: str) -> str:
        """Give a text of the trainer without secrets."""
        return self._redact(text)

    def _add_to_tail(self, chunk: bytes) -> None:
        with self._lock:
            self._tail += chunk
            # A secret cut in half at the front would not be known as one: keep more than is ever shown.
            del self._tail[: -(TAIL_BYTES + self._margin_bytes)]
            self._is_tail_new = True

    @property
    def _margin_bytes(self) -> int:
        return max(4 * self._redact.longest, 1024)

    def _read_tail(self) -> str:
        is_cut = len(self._tail) > TAIL_BYTES
        text = self._redact(self._tail.decode("utf-8", "replace"))
        return text[self._margin_bytes :][-TAIL_BYTES:] if is_cut else text
