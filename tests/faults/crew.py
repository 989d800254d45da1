"""Real worker and sweeper processes on the tests' services, each in a process group of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select, update

from dmsae.service.database import Database
from dmsae.service.tables import Artifact, Attempt, Core, CoreLatent, Cycle, Event, Job, Latent
from tests.planting import job_state, outcomes, plant_job
from worker.__main__ import celery_arguments

ROOT = Path(__file__).parents[2]
IS_FULL = os.environ.get("DMSAE_FAULTS") == "full"
"""Whether outages take as long as the issue says (`make faults`), instead of seconds."""
in_full = pytest.mark.skipif(not IS_FULL, reason="one of the long ones: DMSAE_FAULTS=full, as `make faults`")


def wait_for(condition: Callable[[], bool], *, seconds: float, what: str) -> float:
    """Wait until it holds and give how long it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, f"{what}: not within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - begun


class Crew:
    """Starts processes, plants jobs with fake trainers, and reads what those noted."""

    app = "tests.faults.fake_worker"
    """What a worker runs."""

    def __init__(self, env: dict[str, str], database: Database, folder: Path) -> None:
        passed_on = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.env = {**passed_on, **env}
        self.database = database
        self.folder = folder
        self.locks = Path(env["DMSAE_LOCK_DIR"])
        self._children: list[subprocess.Popen[bytes]] = []

    def start_worker(
        self, device: str = "cpu:0", *, queues: str | None = None, max_runtime_s: float | None = None
    ) -> subprocess.Popen[bytes]:
        log = self.folder / f"worker-{device.replace(':', '-')}.log"
        begun = log.stat().st_size if log.exists() else 0
        worker = self.begin_worker(device, queues=queues, max_runtime_s=max_runtime_s)
        wait_for(lambda: b"worker_started" in log.read_bytes()[begun:], seconds=60, what="the worker starts")
        return worker

    def begin_worker(
        self,
        device: str,
        *,
        queues: str | None = None,
        max_runtime_s: float | None = None,
        before: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a worker without waiting for it, `before` being a command that goes before its own."""
        arguments = celery_arguments(device, app=self.app, max_runtime_s=max_runtime_s)
        if queues is not None:
            arguments[arguments.index("-Q") + 1] = queues
        log = self.folder / f"worker-{device.replace(':', '-')}.log"
        return self._start(arguments, log, before=before)

    def start_sweeper(self) -> subprocess.Popen[bytes]:
        return self._start(["-m", "worker.sweeper"], self.folder / "sweeper.log")

    def plant(self, *, n_cycles: int = 1, **fake: Any) -> str:
        config = {"fake": {"marks": str(self.folder), **fake}}
        return self.database.run(lambda session: plant_job(session, "cpu", n_cycles=n_cycles, config=config))

    def behave(self, job_id: str, **fake: Any) -> None:
        """Have later attempts at a job behave otherwise."""
        with self.database.session_scope() as session:
            config = session.get_one(Job, job_id).config
            changed = {**config, "fake": {"marks": str(self.folder), **fake}}
            session.execute(update(Job).where(Job.id == job_id).values(config=changed))

    def state(self, job_id: str) -> str:
        return self.database.run(lambda session: job_state(session, job_id))

    def error(self, job_id: str) -> dict[str, Any]:
        with self.database.session_scope() as session:
            return session.get_one(Job, job_id).error or {}

    def outcomes(self, job_id: str) -> list[str | None]:
        return self.database.run(lambda session: outcomes(session, job_id))

    def phases(self) -> dict[str, str | None]:
        """In which phase each job is of which an attempt is open."""
        with self.database.session_scope() as session:
            query = select(Cycle.job_id, Attempt.phase).join(Attempt, Attempt.cycle_id == Cycle.id)
            return {row.job_id: row.phase for row in session.execute(query.where(Attempt.outcome.is_(None)))}

    def resumed_steps(self, job_id: str) -> list[int]:
        """After which steps attempts went on."""
        with self.database.session_scope() as session:
            query = select(Event.data["step"]).where(Event.job_id == job_id, Event.kind == "resumed")
            return [int(step) for step in session.scalars(query.order_by(Event.seq))]

    def wait_for_phase(self, job_id: str, phase: str) -> None:
        wait_for(lambda: self.phases().get(job_id) == phase, seconds=60, what=f"the job is {phase}")

    def wait_until(self, job_id: str, state: str, *, seconds: float) -> float:
        return wait_for(lambda: self.state(job_id) == state, seconds=seconds, what=f"the job is {state}")

    def trainer(self, device: str = "cpu:0") -> int | None:
        """Give the pid of the trainer that now uses a device."""
        try:
            marks = json.loads((self.locks / f"{device.replace(':', '-')}.lock").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return int(marks["trainer"]["pid"]) if marks.get("trainer") else None

    def wait_for_trainer(self, device: str = "cpu:0") -> int:
        """Wait until a trainer has begun on a device and give its pid."""
        wait_for(
            lambda: any(self.trainer(device) == pid for what, _, _, pid in self.marks() if what == "begin"),
            seconds=60,
            what="a trainer begins",
        )
        pid = self.trainer(device)
        assert pid is not None
        return pid

    def marks(self) -> list[tuple[str, str, int, int]]:
        """What trainers noted: begin, end or overlap, with job, cycle and pid."""
        path = self.folder / "marks.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [line.split() for line in lines]
        return [(row[0], row[1], int(row[2]), int(row[3])) for row in rows]

    def count(self, what: str) -> Counter[tuple[str, int]]:
        """How often trainers noted it, for each job and cycle."""
        return Counter((job, cycle) for noted, job, cycle, _ in self.marks() if noted == what)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def stop(self) -> None:
        for child in self._children:
            for number in (signal.SIGCONT, signal.SIGTERM):
                if child.poll() is None:
                    os.killpg(child.pid, number)
        for child in self._children:
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait(5)

    def orphans(self) -> list[int]:
        """Trainers that still live, whoever their parent is."""
        return [p.pid for p in psutil.process_iter() if _is_trainer_of(p, self.env["DMSAE_WORK_DIR"])]

    def _start(
        self, arguments: list[str], log: Path, *, before: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        with log.open("ab") as file:
            child = subprocess.Popen(
                [*before, sys.executable, *arguments],
                cwd=ROOT,
                env=self.env,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children.append(child)
        return child


class RealCrew(Crew):
    """A crew whose workers run real trainers, on jobs of a tiny model."""

    app = "worker.app"

    def plant_real(self, config: dict[str, Any]) -> str:
        n_cycles = config["n_cycles"]
        return self.database.run(lambda s: plant_job(s, "cpu", n_cycles=n_cycles, config=config))

    def weights(self, job_id: str) -> dict[tuple[int, str], str]:
        """The sha256 of every stored tensor file, by cycle and name."""
        with self.database.session_scope() as session:
            rows = session.execute(
                select(Cycle.index, Artifact.name, Artifact.sha256)
                .join(Cycle, Cycle.id == Artifact.cycle_id)
                .where(Cycle.job_id == job_id, Artifact.name.endswith(".safetensors"))
            )
            return {(row.index, row.name): row.sha256 for row in rows}

    def lineage(self, job_id: str) -> list[tuple[Any, ...]]:
        """Every core of a job, latent by latent, without what names the job."""
        with self.database.session_scope() as session:
            place = (CoreLatent.core_index, CoreLatent.sae_index, CoreLatent.parent_core_index)
            figures = (CoreLatent.score, CoreLatent.share, CoreLatent.rank, CoreLatent.decoder_cosine)
            rows = session.execute(
                select(Cycle.index, *place, *figures, Latent.origin_cycle, Latent.origin_index)
                .join(Core, Core.cycle_id == Cycle.id)
                .join(CoreLatent, CoreLatent.core_id == Core.id)
                .join(Latent, Latent.id == CoreLatent.latent_id)
                .where(Cycle.job_id == job_id)
                .order_by(Cycle.index, CoreLatent.core_index)
            )
            return [tuple(row) for row in rows]


def _is_trainer_of(process: psutil.Process, work_dir: str) -> bool:
    try:
        command = process.cmdline()
        return process.status() != psutil.STATUS_ZOMBIE and any(work_dir in part for part in command)
    except psutil.Error:
        return False
