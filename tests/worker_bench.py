"""A worker without Celery, whose jobs run the fake trainer, step by step."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import select, update

from dmsae.service.database import Database
from dmsae.service.objects import ObjectStore
from dmsae.service.queue import WakeUps, make_celery
from dmsae.service.settings import Settings
from dmsae.service.tables import Attempt, Cycle, Job
from dmsae.service.workers import identify_worker
from tests.planting import cycle_states, job_state, outcomes, plant_job
from worker.runtime import Runtime
from worker.task import run_one_cycle

FAKE_TRAINER = (sys.executable, str(Path(__file__).parent / "fake_trainer.py"))


class Bench:
    """A worker without Celery, whose jobs run the fake trainer."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.database = runtime.database
        self.job_id = ""

    def plant(self, behaviour: str = "succeed", *, n_cycles: int = 1, **fake: Any) -> None:
        config = {"fake": {"behaviour": behaviour, **fake}}
        self.job_id = self.database.run(
            lambda session: plant_job(session, "cpu", n_cycles=n_cycles, config=config)
        )

    def configure(self, **changes: Any) -> None:
        with self.database.session_scope() as session:
            job = session.get_one(Job, self.job_id)
            session.execute(update(Job).where(Job.id == self.job_id).values(config={**job.config, **changes}))

    def run(self) -> str | None:
        return run_one_cycle(self.runtime, celery_task_id="task")

    def run_meanwhile(self, act: Callable[[], None]) -> str | None:
        """Run a cycle and act once its trainer has started."""
        found: list[str | None] = []
        thread = threading.Thread(target=lambda: found.append(self.run()))
        thread.start()
        wait_for(lambda: self.trainer_pid() is not None)
        act()
        thread.join(30)
        assert not thread.is_alive()
        return found[0]

    def trainer_pid(self) -> int | None:
        path = self.runtime.settings.lock_dir / "cpu-0.lock"
        try:
            trainer = json.loads(path.read_text())["trainer"]
        except (FileNotFoundError, ValueError):
            return None
        return int(trainer["pid"]) if trainer else None

    def error(self) -> dict[str, Any]:
        with self.database.session_scope() as session:
            error = session.get_one(Job, self.job_id).error
        assert error is not None
        return error

    def attempt(self) -> Attempt:
        with self.database.session_scope() as session:
            return session.scalars(
                select(Attempt).join(Cycle).where(Cycle.job_id == self.job_id).order_by(Attempt.fence)
            ).all()[-1]

    def states(self) -> tuple[str, list[str], list[str | None]]:
        with self.database.session_scope() as session:
            job_id = self.job_id
            return job_state(session, job_id), cycle_states(session, job_id), outcomes(session, job_id)


def wait_for(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def bench_of(settings: Settings, database: Database) -> Iterator[Bench]:
    quick = settings.model_copy(update={"kill_grace_s": 0.5, "retry_backoff_s": 0.0, "heartbeat_s": 0.2})
    runtime = Runtime(
        settings=quick,
        worker=identify_worker("here", "cpu:0", memory_bytes=1),
        database=database,
        objects=ObjectStore(quick),
        wake_ups=WakeUps(make_celery(quick.broker_url)),
        command=FAKE_TRAINER,
    )
    yield Bench(runtime)
    runtime.objects.close()
    assert not [p for p in psutil.Process().children(recursive=True) if "fake_trainer" in str(_command(p))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
