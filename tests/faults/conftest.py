"""A crew of real processes for each fault test; afterwards none of them, and no trainer, may be left."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from dmsae.service.database import Database
from tests.faults.crew import Crew


@pytest.fixture
def crew(stack_env: dict[str, str], database: Database, tmp_path: Path) -> Iterator[Crew]:
    short = {"DMSAE_KILL_GRACE_S": "0.5", "DMSAE_RETRY_BACKOFF_S": "0.1", "DMSAE_LEASE_S": "2"}
    with redis.Redis.from_url(stack_env["DMSAE_BROKER_URL"]) as client:
        client.flushall()
    folder = tmp_path / "crew"
    folder.mkdir()
    crew = Crew({**stack_env, **short}, database, folder)
    yield crew
    crew.stop()
    assert crew.orphans() == []
    assert not [mark for mark in crew.marks() if mark[0] == "overlap"]
