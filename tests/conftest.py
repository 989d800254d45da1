"""Real PostgreSQL, Valkey and SeaweedFS for the tests, started once for each pytest process.

A test that only computes asks for none of these fixtures, and then none is started. Here is also how several
pytest processes share the tests.
"""

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from dmsae.errors import Unavailable
from dmsae.local.passwords import generate_passwords
from dmsae.local.processes import Child
from dmsae.local.services import Services, choose_ports, services_in, start_service
from dmsae.service.database import Database
from dmsae.service.migrating import migrate
from dmsae.service.objects import ObjectStore
from dmsae.service.settings import Settings

WHOLE_ROOMS = ("tests/browser/", "tests/e2e/", "tests/faults/", "tests/integration/test_local_")
"""Tests that share one site, watch the clock, or start whole stacks, which would want the same port."""
TEMPLATE = "migrated"
N_PORT_TRIES = 5
SHORT_TIMES = {"lease_s": 2.0, "heartbeat_s": 0.5, "sweep_s": 0.5, "idle_wake_s": 1.0}


class RoomScheduling(LoadScopeScheduling):
    """With `-n`, gives each file and each whole room to one process, in the order of their names.

    So those begin first which take longest and wait more than they compute.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return next((room for room in WHOLE_ROOMS if file.startswith(room)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> RoomScheduling:
    config.option.loadscopereorder = False
    return RoomScheduling(config, log)


@dataclass(frozen=True)
class RunningServices:
    """The services of this pytest process; handles can `suspend`, `resume`, `kill`, `restart`."""

    parts: Services
    env: dict[str, str]
    """`DMSAE_*` variables of all three."""
    postgres: Child
    valkey: Child
    s3: Child

    def server_url(self, database: str) -> str:
        """psycopg's URL of one database."""
        return self.parts.postgres.url(database).replace("+psycopg", "")


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServices]:
    """All three services, migrated template database and bucket included."""
    children: list[Child] = []
    parts = start_services(tmp_path_factory, children)
    try:
        running = RunningServices(parts, parts.env(), *children)
        parts.postgres.ensure_database(TEMPLATE)
        migrate(parts.postgres.url(TEMPLATE))
        with contextlib.closing(ObjectStore(Settings(**_fields(running.env)))) as store:
            store.ensure_bucket()
        yield running
    finally:
        for child in reversed(children):
            with contextlib.suppress(ProcessLookupError):
                child.resume()
            child.stop()
        parts.s3.remove_sockets()
        assert not any(child.is_alive() for child in children)


def start_services(tmp_path_factory: pytest.TempPathFactory, children: list[Child]) -> Services:
    """Start all three; where another process takes a chosen port meanwhile, choose again."""
    for n_tried in range(1, N_PORT_TRIES + 1):
        folder: Path = tmp_path_factory.mktemp("services")
        parts = services_in(folder, logs=folder, numbers=choose_ports({}), passwords=generate_passwords())
        try:
            children.extend(start_service(part) for part in (parts.postgres, parts.valkey, parts.s3))
        except Unavailable:
            while children:
                children.pop().stop()
            if n_tried == N_PORT_TRIES:
                raise
        else:
            return parts
    raise AssertionError("unreachable: the last try returns or raises")


@pytest.fixture
def database_url(services: RunningServices) -> Iterator[str]:
    """SQLAlchemy's URL of a fresh, migrated database of this test alone."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(services.server_url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    yield services.parts.postgres.url(name)
    with psycopg.connect(services.server_url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def stack_env(services: RunningServices, database_url: str, tmp_path: Path) -> dict[str, str]:
    """`DMSAE_*` variables for processes of this test: its own database and folders, short times."""
    folders = {name: str(tmp_path / name) for name in ("cache_dir", "work_dir", "lock_dir")}
    short = {name: str(value) for name, value in SHORT_TIMES.items()}
    extra = {f"DMSAE_{name.upper()}": value for name, value in {**folders, **short}.items()}
    return {**services.env, "DMSAE_DATABASE_URL": database_url, **extra}


@pytest.fixture
def settings(stack_env: dict[str, str]) -> Settings:
    """The same as `Settings`, whatever the environment of pytest says."""
    return Settings(**_fields(stack_env))


@pytest.fixture
def wake_ups() -> list[str]:
    """The resource classes that `database` has woken, in order."""
    return []


@pytest.fixture
def database(database_url: str, wake_ups: list[str]) -> Iterator[Database]:
    """A `Database` over the fresh database that records its wake-ups instead of sending them."""
    database = Database(database_url, wake_up=wake_ups.append)
    yield database
    database.dispose()


def _fields(env: dict[str, str]) -> dict[str, str]:
    return {name.removeprefix("DMSAE_").lower(): value for name, value in env.items()}
