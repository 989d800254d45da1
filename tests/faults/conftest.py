"""A crew of real processes for each fault test; afterwards none of them, and no trainer, may be left."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import redis

from dmsae.service.database import Database
from tests.conftest import SHORT_TIMES, RunningServices
from tests.faults.crew import Crew, RealCrew
from tests.faults.store_proxy import StoreProxy
from tests.serving import fresh_database
from tests.tiny import save_tiny_model

AnyCrew = TypeVar("AnyCrew", bound=Crew)
SHORT = {"DMSAE_KILL_GRACE_S": "0.5", "DMSAE_RETRY_BACKOFF_S": "0.1", "DMSAE_LEASE_S": "2"}


@pytest.fixture
def crew(stack_env: dict[str, str], database: Database, tmp_path: Path) -> Iterator[Crew]:
    with redis.Redis.from_url(stack_env["DMSAE_BROKER_URL"]) as client:
        client.flushall()
    folder = tmp_path / "crew"
    folder.mkdir()
    crew = Crew({**stack_env, **SHORT}, database, folder)
    yield crew
    crew.stop()
    assert crew.orphans() == []
    assert not [mark for mark in crew.marks() if mark[0] == "overlap"]


@pytest.fixture
def proxy(crew: Crew) -> Iterator[StoreProxy]:
    """What stands between the crew and the store, from here on."""
    with StoreProxy(crew.env["DMSAE_S3_ENDPOINT_URL"]) as proxy:
        crew.env["DMSAE_S3_ENDPOINT_URL"] = proxy.url
        yield proxy


@contextmanager
def lasting_crew(
    kind: type[AnyCrew], services: RunningServices, folder: Path, *, env: dict[str, str]
) -> Iterator[AnyCrew]:
    """A crew with a database of its own, for several tests."""
    places = {f"DMSAE_{name.upper()}": str(folder / name) for name in ("cache_dir", "work_dir", "lock_dir")}
    times = {f"DMSAE_{name.upper()}": str(value) for name, value in SHORT_TIMES.items()}
    with redis.Redis.from_url(services.env["DMSAE_BROKER_URL"]) as client:
        client.flushall()
    with fresh_database(services) as database_url:
        database = Database(database_url, wake_up=lambda _: None)
        own = {**services.env, **places, **times, **SHORT, **env, "DMSAE_DATABASE_URL": database_url}
        crew = kind(own, database, folder)
        yield crew
        crew.stop()
        database.dispose()
        assert crew.orphans() == []
        assert not [mark for mark in crew.marks() if mark[0] == "overlap"]


@pytest.fixture(scope="module")
def real_crew(services: RunningServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCrew]:
    """Workers with real trainers, which leave a checkpoint five times a second; `tiny` is their model."""
    folder = tmp_path_factory.mktemp("crew")
    save_tiny_model(folder / "models" / "tiny")
    often = {"DMSAE_CHECKPOINT_S": "0.2", "DMSAE_MAX_ATTEMPTS": "20"}
    env = {**often, "DMSAE_ALLOWED_ROOTS": str(folder / "models")}
    with lasting_crew(RealCrew, services, folder, env=env) as crew:
        yield crew
