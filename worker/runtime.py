"""What a worker has at hand while it runs: settings, connections, its identity, and whether it is to stop."""

import os
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from celery import Celery

from dmsae.service.database import Database
from dmsae.service.objects import ObjectStore
from dmsae.service.queue import WakeUps
from dmsae.service.settings import Settings
from dmsae.service.workers import WorkerIdentity, identify_worker
from worker.devices import Device, find_device
from worker.disk import DiskRoom

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
    visible_devices: str = ""
    """The GPU that a trainer sees; none on a CPU."""
    draining: threading.Event = field(default_factory=threading.Event)
    """Set when the worker is told to stop: the attempt in hand is handed back."""
    disk: DiskRoom = field(default_factory=DiskRoom)

    def close(self) -> None:
        """Close all connections."""
        self.database.dispose()
        self.objects.close()


def make_worker_identity(device: Device) -> WorkerIdentity:
    """Name the worker of a device of this machine."""
    return identify_worker(
        socket.gethostname(),
        device.name,
        memory_bytes=device.memory_bytes,
        device_name=device.model,
        slot=device.slot,
    )


def make_runtime(
    settings: Settings, app: Celery, *, device: str, command: Sequence[str] = TRAINER_COMMAND
) -> Runtime:
    """Open what a worker of this device needs.

    Raises:
        InvalidConfig: this machine has no such device.
    """
    found = find_device(device, os.environ)
    wake_ups = WakeUps(app)
    url = settings.database_url.get_secret_value()
    return Runtime(
        settings=settings,
        worker=make_worker_identity(found),
        database=Database(url, wake_up=wake_ups.send_wake_up, pool_size=4),
        objects=ObjectStore(settings),
        wake_ups=wake_ups,
        command=command,
        visible_devices=found.visible_devices,
    )
