"""A whole site of real processes on the tests' services: one API, two workers, one sweeper, a tiny model."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.tiny import uncompiled_config

ROOT = Path(__file__).parents[2]
FINAL = ("succeeded", "failed", "cancelled")


def wait_for(condition: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """Wait until it gives something true, and give that."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)
    return found


class Site:
    """Submits, waits and reads over HTTP; knows its processes only to kill them."""

    def __init__(self, env: dict[str, str], folder: Path, model: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        passed_on = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        ours = {"DMSAE_PORT": str(port), "DMSAE_ALLOWED_ROOTS": str(model.parent)}
        self.env = {**passed_on, **env, **ours}
        self.folder = folder
        self.model = model
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)

    def start(self) -> None:
        for name, arguments in (
            ("api", ["-m", "api"]),
            ("cpu:0", ["-m", "worker", "--device", "cpu:0"]),
            ("cpu:1", ["-m", "worker", "--device", "cpu:1"]),
            ("sweeper", ["-m", "worker.sweeper"]),
        ):
            self.start_process(name, arguments)
        wait_for(self._is_ready, seconds=60, what="the site is ready")

    def start_process(self, name: str, arguments: list[str]) -> None:
        with (self.folder / f"{name.replace(':', '-')}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        self.http.close()
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(5)

    def submit(self, **overrides: Any) -> str:
        """Submit a distillation of seconds and give its id."""
        answer = self.http.post("/distillations", json=uncompiled_config(self.model, **overrides))
        assert answer.status_code == 202, answer.text
        assert answer.headers["Location"] == f"/jobs/{answer.json()['id']}"
        return str(answer.json()["id"])

    def get(self, path: str, **params: Any) -> Any:
        answer = self.http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait_until_over(self, job_id: str, *, seconds: float = 120) -> dict[str, Any]:
        def over() -> dict[str, Any] | None:
            job: dict[str, Any] = self.get(f"/jobs/{job_id}")
            return job if job["state"] in FINAL else None

        found: dict[str, Any] = wait_for(over, seconds=seconds, what=f"{job_id} ends")
        return found

    def download(self, job_id: str, folder: Path) -> Path:
        """Fetch every artifact through its presigned link, as `folder/<cycle>/<name>`."""
        for artifact in self.get(f"/jobs/{job_id}/artifacts")["items"]:
            file = folder / str(artifact["cycle_index"]) / artifact["name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(httpx.get(artifact["url"], trust_env=False).raise_for_status().content)
            assert file.stat().st_size == artifact["size_bytes"]
        return folder

    def weights(self, job_id: str) -> dict[tuple[int, str], str]:
        """The sha256 of every stored tensor file, by cycle and name."""
        stored = self.get(f"/jobs/{job_id}/artifacts")["items"]
        tensors = [artifact for artifact in stored if artifact["name"].endswith(".safetensors")]
        return {(tensor["cycle_index"], tensor["name"]): tensor["sha256"] for tensor in tensors}

    def trainers(self) -> list[psutil.Process]:
        """Trainers of this site that live, whoever their parent is."""
        return [p for p in psutil.process_iter() if _is_under(p, self.env["DMSAE_WORK_DIR"])]

    def _is_ready(self) -> bool:
        try:
            is_api_ready = self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False
        logs = [(self.folder / f"cpu-{slot}.log").read_bytes() for slot in (0, 1)]
        return is_api_ready and all(b"worker_started" in log for log in logs)


def _is_under(process: psutil.Process, work_dir: str) -> bool:
    try:
        command = process.cmdline()
        return process.status() != psutil.STATUS_ZOMBIE and any(work_dir in part for part in command)
    except psutil.Error:
        return False
