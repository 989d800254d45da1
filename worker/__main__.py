"""Start the worker of one device: `python -m worker --device cpu:0` becomes Celery with the right queues."""

import argparse
import os
import sys

from dmsae.errors import InvalidConfig
from dmsae.service.queue import class_queue, worker_queue
from worker.devices import find_device
from worker.draining import parse_runtime
from worker.runtime import make_worker_identity


def main(arguments: list[str] | None = None, *, app: str = "worker.app") -> None:
    """Replace this process by Celery serving one device; status 2 if there is no such device."""
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("--device", default="cpu:0", help="cpu:0, cuda:1, ... (default: cpu:0)")
    parser.add_argument(
        "--max-runtime", help="hand the cycle back and end within this time: 110m, 2h, 1-12:00:00"
    )
    given = parser.parse_args(arguments)
    try:
        max_runtime_s = None if given.max_runtime is None else parse_runtime(given.max_runtime)
        command = celery_arguments(given.device, app=app, max_runtime_s=max_runtime_s)
    except InvalidConfig as error:
        parser.error(error.message)
    os.execv(sys.executable, [sys.executable, *command])  # noqa: S606


def celery_arguments(
    device: str, *, app: str = "worker.app", max_runtime_s: float | None = None
) -> list[str]:
    """Give the arguments of `python` that start Celery for a device, for so many seconds if told.

    Raises:
        InvalidConfig: this machine has no such device.
    """
    worker = make_worker_identity(find_device(device, os.environ))
    limit = [] if max_runtime_s is None else ["--max-runtime-s", str(max_runtime_s)]
    queues = f"{class_queue(worker.resource_class)},{worker_queue(worker.id)}"
    return [
        *("-m", "celery", "-A", app, "worker", "-P", "threads", "-c", "1"),
        *("-Q", queues, "-n", worker.id, "--device", device, "--loglevel", "WARNING"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat", *limit),
    ]


if __name__ == "__main__":
    main()
