"""`dmsae demo`: the main job for real, over HTTP, from an empty folder to the story of each core latent."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from dmsae.client.client import Answer, Client
from dmsae.errors import Unavailable
from dmsae.local import daemon, demo_report, paths, state
from dmsae.local.demo_progress import open_display
from dmsae.local.paths import DataFolder

POLL_S = 0.5
MEMORY_EVERY_S = 2.0
PATIENCE_S = 60.0
"""How long the API may be silent while a part of the stack is started again."""
DEMO = {"preset": "demo", "name": "demo"}
ENDED = ("succeeded", "failed", "cancelled")


class PeakMemory:
    """The most memory that the stack was seen to use: resident sets of all its processes, added up."""

    def __init__(self, folder: DataFolder) -> None:
        run = state.read_run(folder)
        self._supervisor = run.supervisor.find() if run is not None else None
        self._looked_at = 0.0
        self.peak_bytes = 0

    def look(self) -> None:
        """Look, if the last look was a while ago."""
        if self._supervisor is None or time.monotonic() - self._looked_at < MEMORY_EVERY_S:
            return
        self._looked_at = time.monotonic()
        total_bytes = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (self._supervisor, *self._supervisor.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total_bytes += process.memory_info().rss
        self.peak_bytes = max(self.peak_bytes, total_bytes)


def run_demo(data: Path, *, is_kept: bool, settings: Mapping[str, Any] = DEMO) -> int:
    """Run the demo and give its exit status: 0 only when the distillation succeeded.

    Raises:
        DmsaeError: the stack cannot be started, or does not answer.
    """
    console = Console()
    began = time.monotonic()
    folder = paths.open_data_folder(data)
    with _stack(folder, is_kept=is_kept) as url, Client(url, os.environ.get("DMSAE_API_KEY")) as client:
        start_s = time.monotonic() - began
        job_id = client.distillations.create(settings)["id"]
        answers = f"The stack answers at {url} after {start_s:.0f} s; the distillation is {job_id}."
        console.print(answers, soft_wrap=True, highlight=False)
        memory = PeakMemory(folder)
        try:
            job = _follow(client, job_id, console, memory)
        except KeyboardInterrupt:
            client.jobs.cancel(job_id)
            raise
        if job["state"] != "succeeded":
            _show_failure(client, job, console)
            return 1
        report = demo_report.collect(client, job_id)
        report["seconds"] = {
            "stack": start_s, **report["seconds"], "total": time.monotonic() - began,
        }  # fmt: skip
        report["peak_memory_bytes"] = memory.peak_bytes
        files = demo_report.download(client, job_id, folder.demo / job_id)
        (folder.demo / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        demo_report.show(report, console)
        _show_where(console, folder=folder, job_id=job_id, n_files=len(files), url=url if is_kept else None)
    return 0


@contextlib.contextmanager
def _stack(folder: DataFolder, *, is_kept: bool) -> Iterator[str]:
    """Use the folder's running stack, or start one and stop it afterwards."""
    running = daemon.running_url(folder)
    if running is not None:
        yield running
        return
    url, supervisor = daemon.start(folder, port=None, n_workers=1, is_kept=is_kept)
    try:
        yield url
    finally:
        if not is_kept:
            supervisor.stop()


def _follow(client: Client, job_id: str, console: Console, memory: PeakMemory) -> Answer:
    """Show the job's progress until it has ended."""
    answered_at = time.monotonic()
    with open_display(console) as display:
        while True:
            try:
                job = client.jobs.get(job_id)
            except Unavailable:
                if time.monotonic() - answered_at > PATIENCE_S:
                    raise
            else:
                answered_at = time.monotonic()
                display.show(job)
                if job["state"] in ENDED:
                    return job
            memory.look()
            time.sleep(POLL_S)


def _show_failure(client: Client, job: Answer, console: Console) -> None:
    error: dict[str, Any] = job["error"] or {}
    console.print(f"The distillation {job['state']}: {job['state_reason'] or error.get('message')}")
    if error:
        console.print(f"{error.get('code')}: {error.get('message')}")
    for log in client.jobs.logs(job["id"])[-1:]:
        console.print(f"The trainer of cycle {log['cycle_index']} said last:\n{log['text']}", markup=False)


def _show_where(console: Console, *, folder: DataFolder, job_id: str, n_files: int, url: str | None) -> None:
    then = (
        f"The stack still runs at {url}; `dmsae down --data {folder.root}` stops it."
        if url is not None
        else f"`dmsae up --data {folder.root}` starts the stack again, with this distillation in it."
    )
    for line in (
        f"Files: {n_files} under {folder.demo / job_id} (SAELens folders, cores, scores)",
        f"Report: {folder.demo / 'report.json'}; logs: {folder.logs}",
        then,
    ):
        console.print(line, soft_wrap=True, highlight=False)
