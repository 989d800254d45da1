"""One trainer process: started fresh in a session of its own, told only what it needs, ended for sure."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO, cast

from worker.processes import group_members, kill_group
from worker.threads import thread_of
from worker.trainer_output import TrainerOutput

HUB_ACCESS = (
    *("HF_HOME", "HF_TOKEN", "HF_ENDPOINT"),
    *("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
)
"""How a trainer reaches the model hub: only trainers ask there, so they alone are given its token."""
PASSED_ON = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "PYTHONPATH", *HUB_ACCESS)
"""Variables that a trainer may see; no credential of database, broker or store is among them."""
PASSED_ON_PREFIXES = ("OMP_", "MKL_")
READER_PATIENCE_S = 5.0


def trainer_environment(environment: Mapping[str, str], *, visible_devices: str) -> dict[str, str]:
    """Pick from an environment what a trainer may see, and of the GPUs its own alone."""
    picked = {
        name: value
        for name, value in environment.items()
        if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
    }
    return {**picked, "CUDA_VISIBLE_DEVICES": visible_devices}


class Trainer:
    """A running trainer; start it in a thread that lives as long as it: it dies with that thread."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        lock_fd: int,
        output: TrainerOutput,
        visible_devices: str,
    ) -> None:
        self.output = output
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=trainer_environment(os.environ, visible_devices=visible_devices),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=(lock_fd,),
        )
        self.pid = self._process.pid
        self._readers = [
            _start_reader(output.read_messages, self._process.stdout),
            _start_reader(output.read_chatter, self._process.stderr),
        ]

    def exit_status(self) -> int | None:
        """Give the exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def ask_for_checkpoint(self) -> None:
        """Have a checkpoint written after the step that runs; nothing comes of it where no SAE is trained."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.write(b"checkpoint\n")
                self._process.stdin.flush()

    def stop(self, *, grace_s: float) -> bool:
        """End the whole group and say whether it is proven gone; what was said is read to its end."""
        is_gone = kill_group(self.pid, grace_s=grace_s) if self._has_members() else True
        if not is_gone:
            return False
        self._process.wait()
        for reader in self._readers:
            reader.join(READER_PATIENCE_S)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            _close(stream)
        return True

    def _has_members(self) -> bool:
        return self._process.poll() is None or bool(group_members(self.pid))


def describe_exit(status: int) -> str:
    """Say in a sentence how a trainer ended."""
    if status >= 0:
        return f"The trainer ended with status {status} and without an answer."
    name = signal.Signals(-status).name
    hint = "; the kernel does so when memory runs out" if name == "SIGKILL" else ""
    return f"The trainer was killed by {name}{hint}."


def _start_reader(read: Callable[[BinaryIO], None], stream: IO[bytes] | None) -> threading.Thread:
    thread = thread_of(read, cast("BinaryIO", stream))
    thread.start()
    return thread


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        try:
            stream.close()
        except BrokenPipeError:
            return
