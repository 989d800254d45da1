"""The Celery application of a worker: `celery -A worker.app worker -P threads -c 1 -Q ... --device cpu:0`.

Importing this reads no environment: settings are read when Celery asks for its configuration.
`python -m worker --device cpu:0` fills in the queues.
"""

import threading
from collections.abc import Sequence
from typing import Any

import click
import structlog
from celery import Celery, Task, bootsteps
from celery.signals import worker_shutting_down

from dmsae.errors import InvalidConfig, Unavailable
from dmsae.service.logs import configure_logs
from dmsae.service.queue import TASK_NAME, PromptAMQP, celery_options, check_broker
from dmsae.service.settings import load_settings
from dmsae.service.workers import register_worker, stop_worker
from worker.device_lock import hold_device
from worker.draining import stop_after
from worker.idle import IdleTimer
from worker.runtime import TRAINER_COMMAND, Runtime, make_runtime
from worker.task import run_one_cycle

log = structlog.get_logger()


class Device:
    """The device that this process serves, from the worker's start to its end."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._runtime: Runtime | None = None
        self._timer: IdleTimer | None = None
        self._turn = threading.Lock()
        self._looking: threading.Thread | None = None

    def open(self, app: Celery, name: str, *, max_runtime_s: float | None = None) -> None:
        """Connect, check the broker, introduce the worker, and begin to listen; for so long, if told."""
        settings = load_settings()
        configure_logs(settings.log_level)
        runtime = self._runtime = make_runtime(settings, app, device=name, command=self._command)
        worker_shutting_down.connect(self._drain, weak=False)
        try:
            check_broker(settings.broker_url)
            runtime.database.run(lambda session: register_worker(session, runtime.worker))
        except InvalidConfig as error:
            log.error("worker_refused_to_start", code=error.code, reason=error.message)
            raise SystemExit(1) from error
        except Unavailable as error:
            log.warning("worker_starts_without", error=error.message)
        with hold_device(settings.lock_dir, runtime.worker.slot, kill_grace_s=settings.kill_grace_s):
            log.info("device_seen", device=name, slot=runtime.worker.slot)
        self._timer = IdleTimer(runtime, look=self._look)
        self._timer.start()
        if max_runtime_s is not None:
            stop_after(max_runtime_s, settings)
        log.info("worker_started", worker=runtime.worker.id, device=name)

    def run_cycle(self, celery_task_id: str | None) -> None:
        """Run one cycle, then look at once for another."""
        if self._runtime is None or self._timer is None:
            raise RuntimeError("the worker's device was never opened: start it with --device")
        with self._turn:
            self._timer.heard()
            try:
                outcome = run_one_cycle(self._runtime, celery_task_id=celery_task_id)
            finally:
                self._timer.rest()
        if outcome is not None and not self._runtime.draining.is_set():
            worker = self._runtime.worker
            self._runtime.wake_ups.wake_worker(worker.id, worker.resource_class)

    def close(self) -> None:
        """Say goodbye and disconnect."""
        if self._runtime is None or self._timer is None:
            return
        self._timer.stop()
        if self._looking is not None:
            self._looking.join()
        worker_id = self._runtime.worker.id
        try:
            self._runtime.database.run(lambda session: stop_worker(session, worker_id))
        except Unavailable:
            log.warning("worker_stops_unnoted", worker=worker_id)
        self._runtime.close()
        log.info("worker_stopped", worker=worker_id)

    def _look(self) -> None:
        """Look for a cycle without a wake-up, in a thread of its own, if none does so already."""
        if self._looking is None or not self._looking.is_alive():
            self._looking = threading.Thread(target=self.run_cycle, args=(None,), name="looking")
            self._looking.start()

    def _drain(self, **_: Any) -> None:
        if self._runtime is not None:
            self._runtime.draining.set()


def make_app(command: Sequence[str] = TRAINER_COMMAND) -> Celery:
    """Make a worker's application; `command` starts a trainer."""
    app = Celery("dmsae", set_as_current=False, amqp=PromptAMQP)
    device = Device(command)

    class DeviceStep(bootsteps.StartStopStep):
        """Opens the device before anything is consumed, closes it after the last task."""

        requires = ("celery.worker.components:Timer",)

        def __init__(
            self, parent: Any, device: str | None = None, max_runtime_s: float | None = None, **options: Any
        ) -> None:
            super().__init__(parent, **options)
            self.name_given, self.max_runtime_s = device, max_runtime_s

        def start(self, parent: Any) -> None:
            device.open(parent.app, self.name_given or "cpu:0", max_runtime_s=self.max_runtime_s)

        def stop(self, parent: Any) -> None:  # noqa: ARG002 - Celery's protocol
            device.close()

    def configure(sender: Celery, **_: Any) -> None:
        sender.config_from_object(celery_options(load_settings().broker_url.get_secret_value()))

    def run_cycle(task: "Task[Any, Any]", resource_class: str) -> None:  # noqa: ARG001 - for the log
        """Claim, supervise and record exactly one cycle."""
        device.run_cycle(task.request.id)

    app.on_configure.connect(configure, weak=False)
    app.user_options["worker"].add(click.Option(["--device"], help="Device to serve, such as cpu:0."))
    app.user_options["worker"].add(click.Option(["--max-runtime-s"], type=float, help="Seconds to serve it."))
    app.steps["worker"].add(DeviceStep)
    app.task(name=TASK_NAME, bind=True, shared=False)(run_cycle)
    return app


app = make_app()
