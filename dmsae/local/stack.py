"""The whole stack of one data folder: the order in which it starts and stops, and how it is kept alive."""

import os
import shutil
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from dmsae.errors import Conflict, Unavailable
from dmsae.local import environment, ports, postgres, programs, seaweedfs, state, valkey
from dmsae.local.passwords import Passwords, load_or_generate
from dmsae.local.paths import DataFolder
from dmsae.local.processes import Child, Program
from dmsae.local.services import Service, Services, choose_ports, services_in, start_service
from dmsae.service.migrating import migrate
from dmsae.service.objects import ObjectStore
from dmsae.service.process_marks import ProcessMark
from dmsae.service.settings import settings_from

API_PORT = 8000
"""Taken where it is free and nothing else is asked for or remembered."""
N_PORT_TRIES = 3
WATCH_S = 0.2
BYTES_PATIENCE_S = 20.0
"""How long the store may take to read what it holds; beyond it one is spoilt, which stops nothing."""
STEADY_S = 60.0
"""Whoever ran so long gets a quick restart again."""
LONGEST_BACKOFF_S = 30.0

log = structlog.get_logger()


@dataclass
class Watched:
    """A child that is started again when it ends."""

    child: Child
    service: Service | None = None
    n_restarts: int = 0
    started_at: float = field(default_factory=time.monotonic)
    restart_at: float | None = None


class Stack:
    """Everything that serves one data folder; the caller holds the folder."""

    def __init__(self, folder: DataFolder, *, checkout: Path, port: int | None, n_workers: int) -> None:
        self._folder = folder
        self._checkout = checkout
        self._port = port
        self._n_workers = n_workers
        self._names = environment.embedded_names(os.environ)
        self._watched: list[Watched] = []
        self._run = state.Run(supervisor=ProcessMark.of(os.getpid()))
        self._services: Services | None = None
        self.env: dict[str, str] = {}

    @property
    def url(self) -> str:
        """Where the API answers."""
        return programs.api_url(self.env)

    def start(self) -> None:
        """Start everything in order and wait until all answer.

        Raises:
            Conflict: the port is taken, or a data folder cannot be served.
            Unavailable: a part is not installed, ended, or does not answer.
        """
        self.start_services()
        self._prepare_stores()
        self._start_programs()
        self._run.url, self._run.is_ready = self.url, True
        self._run.write(self._folder)

    def start_services(self) -> None:
        """Start only the services and wait until they answer; nothing is migrated, no bucket is made.

        Raises:
            Conflict: the port is taken, or a data folder cannot be served.
            Unavailable: a part is not installed, ended, or does not answer.
        """
        self._check_installed()
        left = state.end_leftovers(self._folder)
        if left:
            log.warning("leftovers_ended", processes=left)
        self._run.write(self._folder)
        remembered = state.read_ports(self._folder.ports_file)
        self._services, api_port = self._start_services(remembered)
        self.env = environment.service_environment(
            self._folder, self._services, self._names, checkout=self._checkout, port=api_port
        )
        if "s3" in self._names:
            self._wait_for_bytes()

    def watch(self) -> None:
        """Start again whatever ends, for ever, ever more slowly if it keeps ending."""
        while True:
            for watched in self._watched:
                self._look_after(watched)
            time.sleep(WATCH_S)

    def stop(self) -> None:
        """Stop everything: the API, then workers and sweeper, then the services."""
        own = [watched.child for watched in self._watched if watched.service is None]
        services = [watched.child for watched in self._watched if watched.service is not None]
        api, others = own[:1], own[1:]
        for stage in (api, others, services):
            for child in stage:
                child.ask_to_stop()
            for child in stage:
                child.stop()
        if self._services is not None:
            self._services.s3.remove_sockets()
        self._folder.run_file.unlink(missing_ok=True)

    def _check_installed(self) -> None:
        """Find out before anything starts."""
        if "postgres" in self._names:
            postgres.find_binary("postgres")
        if "valkey" in self._names:
            valkey.find_binary()
        if "s3" in self._names:
            seaweedfs.find_binary()

    def _choose_ports(self, remembered: dict[str, int]) -> dict[str, int]:
        """Take the port that was asked for or none; without one, the last run's or 8000 or any."""
        if self._port is None:
            return choose_ports({"api": API_PORT, **remembered}, "api")
        chosen = choose_ports({**remembered, "api": self._port}, "api")
        if chosen["api"] != self._port:
            holder = ports.holder(self._port)
            by = f" by {holder}" if holder else ""
            raise Conflict(f"port = {self._port}: is in use{by}; choose another with --port.", param="port")
        return chosen

    def _start_services(self, remembered: dict[str, int]) -> tuple[Services, int]:
        """Start the embedded services; where a stranger takes a chosen port meanwhile, choose again."""
        passwords = self._passwords()
        for n_tried in range(1, N_PORT_TRIES + 1):
            chosen = self._choose_ports(remembered)
            services = services_in(
                self._folder.root, logs=self._folder.logs, numbers=chosen, passwords=passwords
            )
            parts: dict[str, Service] = {
                "postgres": services.postgres,
                "valkey": services.valkey,
                "s3": services.s3,
            }
            try:
                for name in self._names:
                    self._keep(Watched(start_service(parts[name]), parts[name]))
            except Unavailable:
                for watched in reversed(self._watched):
                    watched.child.stop()
                self._watched.clear()
                if n_tried == N_PORT_TRIES or all(ports.is_free(port) for port in chosen.values()):
                    raise
                log.warning("ports_chosen_again", n_tried=n_tried)
            else:
                state.write_ports(self._folder.ports_file, chosen)
                return services, chosen["api"]
        raise AssertionError("unreachable: the last try returns or raises")

    def _passwords(self) -> Passwords:
        if (self._folder.root / "postgres").exists() and not self._folder.secrets_file.exists():
            raise Conflict(
                f"{self._folder.secrets_file} is missing, so nobody can enter the database beside it: "
                "restore the file from a backup, or move the folder away to begin anew."
            )
        return load_or_generate(self._folder.secrets_file)

    def _prepare_stores(self) -> None:
        settings = settings_from(self.env)
        migrate(settings.database_url.get_secret_value())
        with closing(ObjectStore(settings)) as store:
            store.ensure_bucket()

    def _wait_for_bytes(self) -> None:
        """Wait until the embedded store can read what it holds: it answers before its volumes are there."""
        deadline = time.monotonic() + BYTES_PATIENCE_S
        with closing(ObjectStore(settings_from(self.env))) as store:
            while not store.gives_bytes():
                if time.monotonic() > deadline:
                    log.error("store_gives_no_bytes", waited_s=BYTES_PATIENCE_S)
                    return
                time.sleep(WATCH_S)

    def _start_programs(self) -> None:
        children = [self._launch(programs.api_program(self._folder, self.env))]
        for slot in range(self._n_workers):
            program = programs.worker_program(self._folder, self.env, device=f"cpu:{slot}")
            children.append(self._launch(program))
        children.append(self._launch(programs.sweeper_program(self._folder, self.env)))
        for child in children:
            child.wait_ready(timeout_s=60)

    def _launch(self, program: Program) -> Child:
        child = Child(program)
        child.start()
        self._keep(Watched(child))
        return child

    def _keep(self, watched: Watched) -> None:
        self._watched.append(watched)
        self._note(watched.child)

    def _note(self, child: Child) -> None:
        """Write down who runs, so that whoever comes after a kill -9 knows what is ours."""
        if child.mark is not None:
            self._run.children[child.name] = child.mark
            self._run.write(self._folder)

    def _look_after(self, watched: Watched) -> None:
        child, now = watched.child, time.monotonic()
        if child.is_alive():
            return
        if watched.restart_at is None:
            if now - watched.started_at > STEADY_S:
                watched.n_restarts = 0
            backoff_s = min(LONGEST_BACKOFF_S, 0.25 * 2**watched.n_restarts)
            watched.restart_at = now + backoff_s
            log.error(
                "child_ended",
                child=child.name,
                status=child.status,
                restart_in_s=backoff_s,
                disk_free_mib=shutil.disk_usage(self._folder.root).free >> 20,
                said=child.log_tail(5),
            )
        if now >= watched.restart_at:
            self._restart(watched)

    def _restart(self, watched: Watched) -> None:
        watched.n_restarts += 1
        watched.restart_at, watched.started_at = None, time.monotonic()
        try:
            watched.child.kill()
            if watched.service is not None:
                watched.service.prepare()
            watched.child.start()
            self._note(watched.child)
        except OSError as error:
            log.exception("child_not_started", child=watched.child.name, error=str(error))
        else:
            log.warning("child_restarted", child=watched.child.name, n_restarts=watched.n_restarts)
