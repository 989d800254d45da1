"""One child process: how it is started, watched and stopped, and how it is told from a stranger with its pid.

What runs in which order is the business of `stack.py`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dmsae.errors import Unavailable
from dmsae.local import launch
from dmsae.service.logs import redact
from dmsae.service.process_marks import ProcessMark

POLL_S = 0.05
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE")
"""What a child sees of the caller's environment besides what it is given."""


@dataclass(frozen=True)
class Program:
    """What a child runs, and how it likes to be treated."""

    name: str
    command: tuple[str, ...]
    folder: Path
    """Its working folder."""
    log: Path
    """Where its output is appended."""
    env: Mapping[str, str]
    is_ready: Callable[[], bool]
    """Tells whether it answers; never blocks for long."""
    prefix: tuple[str, ...] = ()
    """A command that changes the user and then runs what follows it."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_s: float = 10.0
    """After so long it is killed."""
    death_signal: signal.Signals | None = signal.SIGKILL
    """What it gets when its parent dies; None lets it live on."""


class Child:
    """A program that runs, or ran, as a child of this process, in a process group of its own."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.process: subprocess.Popen[bytes] | None = None
        self.mark: ProcessMark | None = None
        self._log_start = 0
        self._is_asked = False

    @property
    def name(self) -> str:
        """The program's name."""
        return self.program.name

    @property
    def pid(self) -> int:
        """The process id of the last start."""
        if self.process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self.process.pid

    def is_alive(self) -> bool:
        """Tell whether it runs."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it; give back at once.

        Call it from a thread that lives as long as the child shall: to the kernel that thread is the parent.
        """
        program = self.program
        environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        launcher = (
            sys.executable,
            "-I",
            "-S",
            launch.__file__,
            str(int(program.death_signal or 0)),
            str(os.getpid()),
        )
        with program.log.open("ab") as log:
            program.log.chmod(0o600)
            self._log_start = log.tell()
            self.process = subprocess.Popen(
                [*program.prefix, *launcher, *program.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=program.folder,
                env={**environment, **program.env},
                start_new_session=True,
            )
        self.mark, self._is_asked = ProcessMark.of(self.process.pid), False

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until it answers.

        Raises:
            Unavailable: it ended, or did not answer in time; the message ends with what it said last.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            is_ready = self.program.is_ready()
            if not self.is_alive():
                raise Unavailable(
                    f"{self.name} ended with status {self.status}: {self.log_tail()}", part=self.name
                )
            if is_ready:
                return
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{self.name} does not answer after {timeout_s:.0f} s: {self.log_tail()}", part=self.name
                )
            time.sleep(POLL_S)

    @property
    def status(self) -> int | None:
        """How it ended; None while it runs."""
        return None if self.process is None else self.process.poll()

    def ask_to_stop(self) -> None:
        """Send it the signal at which it ends in order, once: a second one often means at once."""
        if self.process is not None and self.process.poll() is None and not self._is_asked:
            self.process.send_signal(self.program.stop_signal)
            self._is_asked = True

    def stop(self) -> None:
        """Ask it to end, wait, and kill its whole group if it takes too long; nothing if it does not run."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.ask_to_stop()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(self.program.stop_timeout_s)
        self.kill()

    def kill(self) -> None:
        """Kill it and whatever is left of its process group, and wait until it is gone."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def restart(self, timeout_s: float = 30.0) -> None:
        """Stop it if it runs, start it again, and wait until it answers.

        Raises:
            Unavailable: as `wait_ready`.
        """
        self.stop()
        self.start()
        self.wait_ready(timeout_s)

    def suspend(self) -> None:
        """Freeze its whole process group."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Thaw its whole process group."""
        os.killpg(self.pid, signal.SIGCONT)

    def log_tail(self, n_lines: int = 15) -> str:
        """Give the last lines that it wrote since its last start, secrets hidden."""
        try:
            with self.program.log.open("rb") as log:
                log.seek(max(self._log_start, self.program.log.stat().st_size - 20_000))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return "(no log)"
        return redact("\n".join(lines[-n_lines:])) or "(it said nothing)"
