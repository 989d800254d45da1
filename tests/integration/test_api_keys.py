"""Keys over HTTP: shown once, of bounded power, ended at once, limited in their use, and in no log."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from dmsae import cli
from dmsae.local.ports import pick_free
from dmsae.service import key_control, keys
from dmsae.service.database import Database
from dmsae.service.settings import Settings
from tests.serving import served

Headers = dict[str, str]
DEMO = {"preset": "demo"}


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    with served(settings) as client:
        yield client


@pytest.fixture
def made(database: Database) -> dict[str, str]:
    """Keys of an administrator, of ada (a reader's and a submitter's) and of bob."""
    with database.session_scope() as session:
        return {
            "root": keys.create_key(session, "root", role="admin")[1],
            "ada": keys.create_key(session, "ada")[1],
            "reader": keys.create_key(session, "ada", role="reader")[1],
            "bob": keys.create_key(session, "bob")[1],
        }


def bearer(key: str) -> Headers:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_is_shown_once_and_works_until_it_is_revoked(api: httpx.Client, made: dict[str, str]) -> None:
    root = bearer(made["root"])
    wanted = {"owner": "eve", "name": "notebook", "role": "submitter", "expires_in_days": 30}
    answer = api.post("/keys", json=wanted, headers=root)
    assert answer.status_code == 201
    assert answer.headers["Cache-Control"] == "no-store"
    shown = answer.json()
    plaintext = shown.pop("key")
    assert {name: shown[name] for name in ("owner", "name", "role", "state")} == {
        "owner": "eve",
        "name": "notebook",
        "role": "submitter",
        "state": "valid",
    }
    assert shown["expires_at"] > shown["created_at"]
    assert api.post("/distillations", json=DEMO, headers=bearer(plaintext)).json()["owner"] == "eve"
    listed = api.get("/keys", headers=root, params={"owner": "eve"})
    assert plaintext not in listed.text
    (known,) = listed.json()["items"]
    assert known["last_used_at"] is not None
    assert plaintext.startswith(known["prefix"])
    for _ in range(2):
        assert api.delete(f"/keys/{shown['id']}", headers=root).status_code == 204
    refused = api.get("/jobs", headers=bearer(plaintext))
    assert (refused.status_code, refused.json()["code"]) == (401, "key_revoked")


def test_no_key_makes_or_ends_one_that_may_do_more(
    api: httpx.Client, made: dict[str, str], database: Database
) -> None:
    ada = bearer(made["ada"])
    strong = database.run(lambda session: keys.create_key(session, "ada", role="admin")[0].id)
    for body in ({"role": "admin"}, {"owner": "bob"}, {"owner": "nobody-yet"}):
        assert api.post("/keys", json=body, headers=ada).status_code == 403
    assert api.delete(f"/keys/{strong}", headers=ada).status_code == 403
    mine = api.post("/keys", json={"role": "reader"}, headers=ada).json()
    assert (mine["owner"], mine["role"]) == ("ada", "reader")
    theirs = api.get("/keys", headers=bearer(made["bob"])).json()["items"]
    assert {key["owner"] for key in theirs} == {"bob"}
    hidden = api.delete(f"/keys/{mine['id']}", headers=bearer(made["bob"]))
    assert (hidden.status_code, hidden.json()["code"]) == (404, "not_found")
    everybody = api.get("/keys", headers=bearer(made["root"])).json()["items"]
    assert {key["owner"] for key in everybody} == {"root", "ada", "bob"}


def test_keys_are_listed_in_pages(api: httpx.Client, made: dict[str, str]) -> None:
    root = bearer(made["root"])
    seen, cursor = [], {}
    for _ in range(4):
        page = api.get("/keys", params={"limit": 1, **cursor}, headers=root).json()
        seen += [key["id"] for key in page["items"]]
        cursor = {"cursor": page["next_cursor"]}
    assert page["next_cursor"] is None
    assert len(set(seen)) == len(seen) == len(made)
    assert seen == sorted(seen, reverse=True)


def test_the_open_service_makes_no_key(api: httpx.Client) -> None:
    answer = api.post("/keys", json={})
    assert answer.status_code == 403
    assert "dmsae keys create" in answer.json()["detail"]
    assert api.get("/jobs").status_code == 200


def test_an_owner_makes_only_so_many_keys(
    api: httpx.Client, made: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_control, "MOST_VALID_KEYS", 3)
    statuses = [api.post("/keys", json={}, headers=bearer(made["ada"])).status_code for _ in range(3)]
    assert statuses == [201, 429, 429]
    assert api.post("/keys", json={"owner": "ada"}, headers=bearer(made["root"])).status_code == 201


def test_a_key_that_asks_too_often_is_told_when_to_come_back(
    settings: Settings, made: dict[str, str]
) -> None:
    with served(settings.model_copy(update={"rate_per_s": 1.0, "rate_burst": 5})) as api:
        answers = [api.get("/queue", headers=bearer(made["ada"])) for _ in range(12)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(refused) >= 5
        assert {answer.json()["code"] for answer in refused} == {"rate_limited"}
        assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
        assert api.get("/queue", headers=bearer(made["bob"])).status_code == 200
        assert api.get("/healthz", headers=bearer(made["ada"])).status_code == 200
        time.sleep(1.2)
        assert api.get("/queue", headers=bearer(made["ada"])).status_code == 200


def test_a_quota_says_when_to_come_back(api: httpx.Client, made: dict[str, str]) -> None:
    limits = api.patch("/admin/owners/ada", json={"max_queued": 1}, headers=bearer(made["root"]))
    assert limits.json()["max_queued"] == 1
    answers = [api.post("/distillations", json=DEMO, headers=bearer(made["ada"])) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 429]
    assert int(answers[1].headers["Retry-After"]) > 0
    lifted = api.patch("/admin/owners/ada", json={"max_queued": None}, headers=bearer(made["root"]))
    assert lifted.json()["max_queued"] is None
    assert api.post("/distillations", json=DEMO, headers=bearer(made["ada"])).status_code == 202


def test_an_administrator_runs_the_queue_and_everybodys_jobs(api: httpx.Client, made: dict[str, str]) -> None:
    root, ada = bearer(made["root"]), bearer(made["ada"])
    job_id = api.post("/distillations", json=DEMO, headers=ada).json()["id"]
    paused = api.patch("/admin/queue", json={"is_paused": True, "reason": "power cut"}, headers=root).json()
    assert (paused["is_paused"], paused["reason"]) == (True, "power cut")
    assert api.get("/queue", headers=ada).json()["pause_reason"] == "power cut"
    held = api.patch(f"/admin/jobs/{job_id}", json={"held": True, "priority": "high"}, headers=root).json()
    assert (held["held"], held["priority"], held["owner"]) == (True, "high", "ada")
    assert api.patch(f"/admin/jobs/{job_id}", json={"held": False}, headers=root).json()["held"] is False
    assert api.patch("/admin/queue", json={"is_paused": False}, headers=root).json()["is_paused"] is False
    assert (
        api.patch("/admin/queue", json={"is_paused": False, "reason": "x"}, headers=root).status_code == 422
    )
    assert api.patch("/admin/owners/nobody", json={"weight": 2}, headers=root).status_code == 404
    assert api.patch("/admin/owners/ada", json={}, headers=root).status_code == 422
    assert api.patch("/admin/owners/ada", json={"weight": 2}, headers=root).json()["weight"] == 2
    assert {owner["name"] for owner in api.get("/admin/owners", headers=root).json()["items"]} >= {
        "ada",
        "bob",
    }
    assert api.post(f"/jobs/{job_id}/cancel", headers=root).json()["state"] == "cancelled"
    assert api.patch(f"/admin/jobs/{job_id}", json={"held": True}, headers=root).status_code == 409
    assert api.delete(f"/jobs/{job_id}", headers=root).status_code == 204
    assert api.patch(f"/admin/jobs/{job_id}", json={"held": True}, headers=root).status_code == 404


@pytest.fixture
def command(database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    monkeypatch.setenv("DMSAE_DATABASE_URL", database_url)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> list[str]:
        given = ["keys", *arguments, "--data", str(tmp_path)]
        return CliRunner().invoke(cli.app, given, catch_exceptions=False).output.split()

    return run


def made_by(words: list[str]) -> list[str]:
    """The id and the key that `create` printed, among what the API in this process may log."""
    return [word for word in words if re.fullmatch("key_[0-9a-f]{32}|dmsae_[A-Za-z0-9_-]{43}", word)]


def test_the_command_makes_the_first_key_in_the_database_and_others_over_http(
    api: httpx.Client, command: Callable[..., list[str]]
) -> None:
    _, root = made_by(command("create", "root", "--role", "admin"))
    there = ("--url", str(api.base_url), "--key", root)
    key_id, reader = made_by(command("create", "eve", "--role", "reader", "--expires-days", "7", *there))
    assert api.get("/jobs", headers=bearer(reader)).status_code == 200
    assert api.post("/distillations", json=DEMO, headers=bearer(reader)).status_code == 403
    for listed in (command("list"), command("list", *there)):
        assert {"root", "eve", "admin", "reader", "valid"} <= set(listed)
        assert reader not in listed
    command("revoke", key_id, *there)
    assert "revoked" in command("list")


def test_a_key_stands_in_no_log(stack_env: dict[str, str], made: dict[str, str]) -> None:
    (port,) = pick_free(1)
    environment = {**os.environ, **stack_env, "DMSAE_PORT": str(port), "DMSAE_LOG_LEVEL": "DEBUG"}
    process = subprocess.Popen([sys.executable, "-m", "api"], env=environment, stderr=subprocess.PIPE)
    key = made["ada"]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as api:
            wait_for(api)
            assert api.get("/jobs", headers=bearer(key)).status_code == 200
            for path in (f"/jobs/{key}", f"/{key}", f"/jobs?text={key}", f"/jobs?{key}=1"):
                assert api.get(path, headers=bearer(key)).status_code < 500
            api.get("/jobs", headers={**bearer(key), "X-Request-ID": key})
            api.get("/jobs", headers={"Authorization": f"Bearer {key} {key}"})
            api.post("/distillations", content=f'{{"{key}": "{key}"', headers=bearer(key))
    finally:
        process.terminate()
        _, logged = process.communicate(timeout=20)
    assert b"request_answered" in logged
    assert b'"owner": "ada"' in logged
    assert key.encode() not in logged
    assert key.removeprefix("dmsae_").encode() not in logged


def wait_for(api: httpx.Client, *, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            assert api.get("/healthz").status_code == 200
            return
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
