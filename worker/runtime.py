"""What a worker has at hand while it runs: settings, connections, its identity, and whether it is to stop."""

import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil
from celery import Celery

from dmsae.service.database import Database
from dmsae.service.objects import ObjectStore
from dmsae.service.queue import WakeUps
from dmsae.service.settings import Settings
from dmsae.service.workers import WorkerIdentity, identify_worker

TRAINER_COMMAND = (sys.executable, "-m", "dmsae.cycle")


@dataclass
class Runtime:
    """All that the task of a worker needs."""

    settings: Settings
    worker: WorkerIdentity
    database: Database
    objects: ObjectStore
    wake_ups: WakeUps
    command: Sequence[str] = TRAINER_COMMAND
    """How a trainer is started; tests give another."""
    draining: threading.Event = field(default_factory=threading.Event)
    """Set when the worker is told to stop: the attempt in hand is handed back."""

    def close(self) -> None:
        """Close all connections."""
        self.database.dispose()
        self.objects.close()


def make_worker_identity(device: str) -> WorkerIdentity:
    """Name the worker of a device of this machine."""
    return identify_worker(socket.gethostname(), device, memory_bytes=psutil.virtual_memory().total)


def make_runtime(
    settings: Settings, app: Celery, *, device: str, command: Sequence[str] = TRAINER_COMMAND
) -> Runtime:
    """Open what a worker of this device needs."""
    wake_ups = WakeUps(app)
    url = settings.database_url.get_secret_value()
    return Runtime(
        settings=settings,
        worker=make_worker_identity(device),
        database=Database(url, wake_up=wake_ups.send_wake_up, pool_size=4),
        objects=ObjectStore(settings),
        wake_ups=wake_ups,
        command=command,
    )
