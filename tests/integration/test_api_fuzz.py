"""Schemathesis makes up requests from our own OpenAPI document: no 5xx, and no answer that it does not name.

`DMSAE_FUZZ=N` (`make fuzz`) runs all its phases with N examples of each call, else there are some hundred.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from dmsae.service import keys
from dmsae.service.database import Database
from dmsae.service.settings import Settings
from tests.conftest import RunningServices
from tests.finished import finish_cycles
from tests.fuzzing import run_schemathesis, with_ids
from tests.serving import fresh_database, served

N_EXAMPLES = int(os.environ.get("DMSAE_FUZZ", "0"))
pytestmark = pytest.mark.timeout(7200 if N_EXAMPLES else 280)


@pytest.fixture
def site(services: RunningServices) -> Iterator[tuple[httpx.Client, str, dict[str, list[str]]]]:
    """An API, an administrator's key, and ids of things that are there."""
    fields = {name.removeprefix("DMSAE_").lower(): value for name, value in services.env.items()}
    with fresh_database(services) as database_url, ExitStack() as closing:
        database = Database(database_url, wake_up=str)
        closing.callback(database.dispose)
        key = database.run(lambda session: keys.create_key(session, "root", role="admin")[1])
        settings = Settings(**{**fields, "database_url": database_url, "rate_per_s": 0})
        api = closing.enter_context(served(settings))
        api.headers["Authorization"] = f"Bearer {key}"
        done = api.post("/distillations", json={"preset": "demo"}).json()["id"]
        finish_cycles(database)
        around = {"core": {"kind": "selected", "cycle": {"job_id": done}}}
        training = api.post("/trainings", json=around).json()["id"]
        group = api.post("/distillations", json={"preset": "demo", "chains": 2}).json()["group_id"]
        yield api, key, {"job_id": [done, training], "group_id": [group], "name": ["root"]}


def test_no_request_that_the_document_suggests_makes_the_service_lie(
    site: tuple[httpx.Client, str, dict[str, list[str]]], tmp_path: Path
) -> None:
    api, key, ids = site
    phases = ["examples", "fuzzing", "stateful"]
    outcome = run_schemathesis(
        tmp_path,
        url=str(api.base_url),
        key=key,
        document=with_ids(api.get("/openapi.json").json(), ids),
        phases=[*phases, "coverage"] if N_EXAMPLES else phases,
        n_examples=N_EXAMPLES or 4,
    )
    assert outcome.is_clean, outcome.told[-20_000:]
    assert outcome.n_cases > 100, outcome.told[-2000:]
