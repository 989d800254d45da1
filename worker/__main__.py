"""Start the worker of one device: `python -m worker --device cpu:0` becomes Celery with the right queues."""

import argparse
import os
import re
import sys

from dmsae.service.queue import class_queue, worker_queue
from worker.runtime import make_worker_identity

DEVICE = re.compile(r"(cpu|cuda):[0-9]{1,3}")


def main(arguments: list[str] | None = None, *, app: str = "worker.app") -> None:
    """Replace this process by Celery serving one device."""
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("--device", default="cpu:0", help="cpu:0, cpu:1, ... (default: cpu:0)")
    device = parser.parse_args(arguments).device
    if not DEVICE.fullmatch(device):
        parser.error(f"--device = {device!r}: must be cpu:N or cuda:N")
    os.execv(sys.executable, [sys.executable, *celery_arguments(device, app=app)])  # noqa: S606


def celery_arguments(device: str, *, app: str = "worker.app") -> list[str]:
    """Give the arguments of `python` that start Celery for a device."""
    worker = make_worker_identity(device)
    queues = f"{class_queue(worker.resource_class)},{worker_queue(worker.id)}"
    return [
        *("-m", "celery", "-A", app, "worker", "-P", "threads", "-c", "1"),
        *("-Q", queues, "-n", worker.id, "--device", device, "--loglevel", "WARNING"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ]


if __name__ == "__main__":
    main()
