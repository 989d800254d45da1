"""A crew of real processes for each fault test; afterwards none of them, and no trainer, may be left."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from dmsae.service.database import Database
from tests.conftest import SHORT_TIMES, RunningServices
from tests.faults.crew import Crew, RealCrew
from tests.serving import fresh_database
from tests.tiny import save_tiny_model

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


@pytest.fixture(scope="module")
def real_crew(services: RunningServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCrew]:
    """Workers with real trainers, which leave a checkpoint five times a second; `tiny` is their model."""
    folder = tmp_path_factory.mktemp("crew")
    save_tiny_model(folder / "models" / "tiny")
    places = {f"DMSAE_{name.upper()}": str(folder / name) for name in ("cache_dir", "work_dir", "lock_dir")}
    times = {f"DMSAE_{name.upper()}": str(value) for name, value in SHORT_TIMES.items()}
    often = {"DMSAE_CHECKPOINT_S": "0.2", "DMSAE_MAX_ATTEMPTS": "20"}
    env = {**services.env, **places, **times, **SHORT, **often, "DMSAE_ALLOWED_ROOTS": str(folder / "models")}
    with redis.Redis.from_url(env["DMSAE_BROKER_URL"]) as client:
        client.flushall()
    with fresh_database(services) as database_url:
        database = Database(database_url, wake_up=lambda _: None)
        crew = RealCrew({**env, "DMSAE_DATABASE_URL": database_url}, database, folder)
        yield crew
        crew.stop()
        database.dispose()
        assert crew.orphans() == []
