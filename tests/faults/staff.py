"""A staff that serves several tests: two workers, a sweeper, and an API that takes jobs for them."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
import redis

from dmsae.service.settings import settings_from
from tests.conftest import RunningServices
from tests.faults.conftest import lasting_crew
from tests.faults.crew import IS_FULL, Crew, wait_for
from tests.serving import served

DEVICES = ("cpu:0", "cpu:1")
SOON_S = 20.0 if IS_FULL else 60.0
"""What seconds late means, on a machine that does other things too; in the suite it may do many."""


class Staff(NamedTuple):
    """Who works, and whom they work with."""

    crew: Crew
    workers: list[subprocess.Popen[bytes]]
    api: httpx.Client
    broker: redis.Redis

    def post(self) -> str:
        """Submit a distillation of three cycles, which must be taken."""
        answer = self.api.post("/distillations", json={"preset": "demo"})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def train(self, *seconds: float, n_cycles: int = 1) -> list[str]:
        """Plant jobs that train so long, and wait until each device has one."""
        jobs = [self.crew.plant(n_cycles=n_cycles, seconds=each) for each in seconds]
        for device in DEVICES:
            self.crew.wait_for_trainer(device)
        return jobs

    def assert_ran_once(self, jobs: list[str], *, n_cycles: int = 1, seconds: float = SOON_S) -> None:
        """Wait until jobs have succeeded, each cycle at its first attempt, and no worker has left."""
        for job_id in jobs:
            self.crew.wait_until(job_id, "succeeded", seconds=seconds)
            assert self.crew.outcomes(job_id) == ["succeeded"] * n_cycles
        assert [worker.poll() for worker in self.workers] == [None] * len(self.workers)


@contextmanager
def staffed(services: RunningServices, folder: Path) -> Iterator[Staff]:
    """Start everybody, with a database of their own."""
    with lasting_crew(Crew, services, folder, env={}) as crew:
        crew.start_sweeper()
        workers = [crew.begin_worker(device) for device in DEVICES]
        logs = [f"worker-{device.replace(':', '-')}" for device in DEVICES]
        for log in logs:
            wait_for(partial(_has_started, crew, log), seconds=60, what="the worker starts")
        settings = settings_from(crew.env)
        broker_url = settings.broker_url.get_secret_value()
        with served(settings) as api, redis.Redis.from_url(broker_url) as broker:
            yield Staff(crew, workers, api, broker)


def _has_started(crew: Crew, log: str) -> bool:
    return "worker_started" in crew.log(log)
