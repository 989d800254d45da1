"""`dmsae retry` and `dmsae clone` against a real API."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from dmsae import cli
from dmsae.client.client import Client
from dmsae.commands.jobs import parse_settings
from dmsae.errors import BadRequest, Conflict
from dmsae.service.database import Database
from dmsae.service.recording import record_failure
from dmsae.service.settings import Settings
from tests.finished import claim_of, finish_cycles
from tests.planting import plant_worker
from tests.serving import served


def ask(url: str, *arguments: str) -> str:
    found = CliRunner().invoke(cli.app, [*arguments, "--url", url], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    said = [line for line in found.output.splitlines() if "request_answered" not in line]
    return "\n".join(said)


def test_a_failed_job_is_retried_and_a_finished_one_cloned_from_the_command_line(
    settings: Settings, database: Database
) -> None:
    worker_id = database.run(lambda session: plant_worker(session, "cpu"))
    with served(settings) as api, Client(str(api.base_url)) as client:
        url = str(api.base_url)
        job_id = client.distillations.create({"preset": "demo", "n_cycles": 1}, idempotency_key="one")["id"]
        again = client.distillations.create({"preset": "demo", "n_cycles": 1}, idempotency_key="one")
        assert again["id"] == job_id
        with pytest.raises(Conflict, match="is queued: only a failed one is retried"):
            ask(url, "retry", job_id)
        claim = claim_of(database, worker_id)
        database.run(lambda s: record_failure(s, claim, code="timed_out", message="Too long."))
        for _ in range(2):
            assert ask(url, "retry", job_id) == f"{job_id} is queued, run 2."
        finish_cycles(database, n_cycles=1, worker_id=worker_id)

        clone_id = ask(url, "clone", job_id, "--set", "sae.k=64", "--set", "seed=3", "--name", "denser")
        clone = client.jobs.get(clone_id)
        assert (clone["cloned_from"], clone["name"]) == (job_id, "denser")
        assert clone["changes"] == {"sae.k": {"from": 32, "to": 64}, "seed": {"from": 0, "to": 3}}
        assert ask(url, "job", "clone", job_id, "--reuse") == job_id
        dry_run: dict[str, Any] = json.loads(ask(url, "clone", job_id, "--dry-run"))
        assert dry_run["identical_to"] == job_id
        group = client.distillations.create({"preset": "demo", "chains": 2})
        assert client.groups.cancel(group["group_id"])["states"] == {"cancelled": 2}
        assert client.groups.get(group["group_id"])["state"] == "cancelled"


def test_settings_are_json_or_words() -> None:
    given = ["sae.k=64", "data.split=[0.8, 0.1, 0.1]", "sae.core_norm=unit", "training.lr=3e-4", "seed=null"]
    assert parse_settings(given) == {
        "sae": {"k": 64, "core_norm": "unit"},
        "data": {"split": [0.8, 0.1, 0.1]},
        "training": {"lr": 3e-4},
        "seed": None,
    }
    for bad in (
        ["sae.k"],
        ["=3"],
        ["sae..k=3"],
        ["seed=1", "seed=2"],
        ["sae=1", "sae.k=2"],
        ["a.b=1", "a=2"],
    ):
        with pytest.raises(BadRequest, match="--set"):
            parse_settings(bad)
