"""`dmsae up`, `down` and `status`: one supervisor for each data folder, in the foreground or by itself."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from dmsae.errors import Conflict, Unavailable
from dmsae.local import environment, paths, state
from dmsae.local.passwords import load_or_generate
from dmsae.local.paths import DataFolder
from dmsae.local.processes import Child, Program
from dmsae.local.services import services_in
from dmsae.local.stack import Stack
from dmsae.service.logs import configure_logs

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
START_PATIENCE_S = 180.0
STOP_PATIENCE_S = 120.0


def serve(root: Path, *, port: int | None, n_workers: int, announce: Callable[[Stack], None]) -> None:
    """Start the stack, announce it, keep it alive until told to stop, and stop it in order.

    Raises:
        AlreadyRunning: another supervisor holds the folder.
        DmsaeError: something cannot be started; nothing is left running.
    """
    configure_logs("WARNING")
    checkout = paths.find_checkout()
    folder = paths.open_data_folder(root)
    with state.hold(folder):
        for number in STOPPING:
            signal.signal(number, _interrupt)
        stack = Stack(folder, checkout=checkout, port=port, n_workers=n_workers)
        try:
            stack.start()
            announce(stack)
            stack.watch()
        except KeyboardInterrupt:
            pass
        finally:
            for number in STOPPING:
                signal.signal(number, signal.SIG_IGN)
            stack.stop()


def start(folder: DataFolder, *, port: int | None, n_workers: int, is_kept: bool) -> tuple[str, Child]:
    """Start a supervisor as a process of its own; give the URL once all answer, and the supervisor.

    `is_kept` lets it live on after this process; otherwise it stops in order when this process dies.

    Raises:
        AlreadyRunning: another supervisor holds the folder.
        Unavailable: the stack did not start; the message says why.
    """
    if state.is_held(folder):
        with state.hold(folder):
            pass
    arguments = ["--data", str(folder.root), "--workers", str(n_workers)]
    if port is not None:
        arguments += ["--port", str(port)]
    supervisor = Child(
        Program(
            name="dmsae up",
            command=(sys.executable, "-m", "dmsae.cli", "up", *arguments),
            folder=Path.cwd(),
            log=folder.logs / "up.log",
            env=os.environ,
            is_ready=lambda: _ready_url(folder) is not None,
            stop_timeout_s=STOP_PATIENCE_S,
            death_signal=None if is_kept else signal.SIGTERM,
        )
    )
    supervisor.start()
    try:
        supervisor.wait_ready(START_PATIENCE_S)
    except BaseException:
        supervisor.ask_to_stop()
        supervisor.stop()
        raise
    url = _ready_url(folder)
    if url is None:
        raise Unavailable(f"The stack ended as soon as it was ready; see {folder.logs}.")
    return url, supervisor


def stop(folder: DataFolder) -> bool:
    """Stop the folder's supervisor in order and wait until it is gone; false if none ran.

    Raises:
        Unavailable: it does not stop.
    """
    run = state.read_run(folder)
    if not state.is_held(folder):
        with state.hold(folder):
            return bool(state.end_leftovers(folder))
    supervisor = run.supervisor.find() if run is not None else None
    if supervisor is None:
        raise Unavailable(f"Whoever holds {folder.root} is just starting or stopping: try again in a moment.")
    run_goes_on = supervisor.is_running
    supervisor.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_PATIENCE_S
    while state.is_held(folder) or run_goes_on():
        if time.monotonic() > deadline:
            raise Unavailable(f"The stack does not stop: see {folder.logs}, process {supervisor.pid}.")
        time.sleep(0.1)
    return True


def describe(folder: DataFolder) -> list[tuple[str, str]]:
    """Say of the supervisor and of each child whether it runs."""
    run = state.read_run(folder)
    if run is None or not state.is_held(folder):
        return []
    url = run.url if run.is_ready and run.url is not None else "starting"
    children = [
        (name, f"pid {child.pid}" if child.find() else "down, waits to be started again")
        for name, child in run.children.items()
    ]
    return [("url", url), ("supervisor", f"pid {run.supervisor.pid}"), *children]


def running_url(folder: DataFolder) -> str | None:
    """Give the URL of the stack that runs on a folder; None if none does."""
    return _ready_url(folder) if state.is_held(folder) else None


def stack_environment(root: Path) -> dict[str, str]:
    """Give the settings under which a process beside the running stack reaches its parts.

    Raises:
        Conflict: no stack runs on this folder.
    """
    folder = DataFolder(root.absolute())
    names = environment.embedded_names(os.environ)
    ports = state.read_ports(folder.ports_file)
    if names and (not ports or running_url(folder) is None):
        raise Conflict(
            f"No stack runs on {folder.root}: start one with `dmsae up`, or set DMSAE_DATABASE_URL, "
            "DMSAE_BROKER_URL and DMSAE_S3_ENDPOINT_URL."
        )
    if not names:
        return dict(os.environ)
    services = services_in(
        folder.root, logs=folder.logs, numbers=ports, passwords=load_or_generate(folder.secrets_file)
    )
    checkout = paths.find_checkout()
    env = environment.service_environment(folder, services, names, checkout=checkout, port=ports["api"])
    return {**os.environ, **env}


def _ready_url(folder: DataFolder) -> str | None:
    run = state.read_run(folder)
    return run.url if run is not None and run.is_ready and run.supervisor.find() is not None else None


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
