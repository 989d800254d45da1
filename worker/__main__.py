"""Start the worker of one device: `python -m worker --device cpu:0` becomes Celery with the right queues."""

import argparse
import os
import sys

from dmsae.errors import InvalidConfig
from dmsae.service.queue import class_queue, worker_queue
from worker.devices import find_device
from worker.runtime import make_worker_identity


def main(arguments: list[str] | None = None, *, app: str = "worker.app") -> None:
    """Replace this process by Celery serving one device; status 2 if there is no such device."""
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("--device", default="cpu:0", help="cpu:0, cuda:1, ... (default: cpu:0)")
    device = parser.parse_args(arguments).device
    try:
        command = celery_arguments(device, app=app)
    except InvalidConfig as error:
        parser.error(error.message)
    os.execv(sys.executable, [sys.executable, *command])  # noqa: S606


def celery_arguments(device: str, *, app: str = "worker.app") -> list[str]:
    """Give the arguments of `python` that start Celery for a device.

    Raises:
        InvalidConfig: this machine has no such device.
    """
    worker = make_worker_identity(find_device(device, os.environ))
    queues = f"{class_queue(worker.resource_class)},{worker_queue(worker.id)}"
    return [
        *("-m", "celery", "-A", app, "worker", "-P", "threads", "-c", "1"),
        *("-Q", queues, "-n", worker.id, "--device", device, "--loglevel", "WARNING"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ]


if __name__ == "__main__":
    main()
