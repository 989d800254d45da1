"""The shared queue over HTTP and by command line: what waits and why, who runs what, and what is refused."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from dmsae import cli
from dmsae.errors import Conflict, DmsaeError, InvalidConfig, NotFound
from dmsae.service.claims import QueueRules
from dmsae.service.database import Database
from dmsae.service.queue_snapshots import take_snapshots
from dmsae.service.queue_tables import UsageSlice
from dmsae.service.settings import Settings
from dmsae.service.shares import drop_old_slices
from dmsae.service.tables import Cycle, Job, Worker
from tests.finished import claim_of
from tests.planting import plant_owner, plant_worker
from tests.serving import served

GIB = 1 << 30


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    with served(settings) as client:
        yield client


@pytest.fixture
def command(database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("DMSAE_DATABASE_URL", database_url)

    def run(*arguments: str) -> str:
        found = CliRunner().invoke(cli.app, [*arguments, "--data", str(tmp_path)], catch_exceptions=False)
        return found.output

    return run


def submit(api: httpx.Client, **fields: Any) -> str:
    answer = api.post("/distillations", json={"preset": "demo", **fields})
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def look(api: httpx.Client, database: Database) -> Any:
    database.run(lambda session: take_snapshots(session, QueueRules()))
    answer = api.get("/queue")
    assert answer.status_code == 200, answer.text
    return answer.json()


def reasons(queue: Any) -> dict[str, str]:
    return {waiting["job_id"]: waiting["why"] for line in queue["lines"] for waiting in line["waiting"]}


def test_the_queue_shows_who_waits_in_order_and_who_runs_what(api: httpx.Client, database: Database) -> None:
    assert look(api, database)["lines"] == []
    running, later, first = (submit(api, priority=p, name=f"priority {p}") for p in ("normal", "low", "high"))
    with database.session_scope() as session:
        session.execute(update(Job).where(Job.id == running).values(priority="high"))
        session.execute(update(Cycle).where(Cycle.job_id == running).values(priority_rank=0))
    worker = database.run(lambda session: plant_worker(session, "cpu"))
    assert claim_of(database, worker).job_id == running
    queue = look(api, database)
    (line,) = queue["lines"]
    assert (line["resource_class"], line["n_queued"]) == ("cpu", 2)
    assert [(each["job_id"], each["position"]) for each in line["waiting"]] == [(first, 0), (later, 1)]
    assert [each["job_name"] for each in line["waiting"]] == ["priority high", "priority low"]
    (runs,) = (shown["running"] for shown in queue["workers"])
    assert (runs["job_id"], runs["job_name"], runs["owner"]) == (running, "priority normal", "local")
    (owner,) = queue["owners"]
    assert (owner["owner"], owner["n_running"], owner["n_queued"], owner["share"]) == ("local", 1, 2, 1)
    assert reasons(queue)[later] == (
        "It waits for a free cpu worker; 1 queued cycle comes first, and when it begins cannot be told yet."
    )


def test_the_queue_shows_what_each_owner_used_in_a_week(api: httpx.Client, database: Database) -> None:
    with database.session_scope() as session:
        today, earlier = plant_owner(session), plant_owner(session)
        for owner_id, days, seconds in ((today, 0.1, 100.0), (earlier, 6.5, 300.0), (earlier, 9, 5000.0)):
            began_at = datetime.now(UTC) - timedelta(days=days)
            session.add(UsageSlice(owner_id=owner_id, began_at=began_at, device_s=seconds, high_s=0.0))
        plant_owner(session)
    database.run(drop_old_slices)
    used = {each["owner"]: each for each in look(api, database)["owners"]}
    assert used.keys() == {today, earlier}, "who used nothing is not shown"
    assert [used[each]["week_s"] for each in (today, earlier)] == [100, 300]
    assert [used[each]["week_share"] for each in (today, earlier)] == [0.25, 0.75]
    assert [used[each]["share"] for each in (today, earlier)] == [1, 0], "turns go by the last 24 hours"
    with database.session_scope() as session:
        assert session.query(UsageSlice).count() == 2, "what no window reaches any more is forgotten"


def test_each_reason_to_wait_is_one_sentence(api: httpx.Client, database: Database, command: Any) -> None:
    job_id = submit(api)

    def why() -> str:
        queue = look(api, database)
        told = reasons(queue)[job_id]
        assert api.get(f"/jobs/{job_id}").json()["state_reason"] == told
        assert told.endswith(".")
        return told

    assert "No cpu worker" in why()
    worker = database.run(lambda session: plant_worker(session, "cpu"))
    assert "it comes next" in why()
    with database.session_scope() as session:
        session.execute(update(Worker).where(Worker.id == worker).values(memory_bytes=GIB))
        session.execute(update(Cycle).values(memory_bytes=3 * GIB))
    assert why() == "It needs about 3.0 GiB, and the largest cpu device that is served has 1.0."
    command("queue", "pause", "--reason", "power cut at noon")
    assert why() == "The whole queue is paused: power cut at noon."
    assert api.get("/queue").json()["is_paused"] is True
    command("queue", "hold", job_id)
    assert "held" in why()
    assert [each["held"] for line in look(api, database)["lines"] for each in line["waiting"]] == [True]
    command("queue", "release", job_id)
    assert "goes on" in command("queue", "resume")
    assert "was not paused" in command("queue", "resume")
    with database.session_scope() as session:
        session.execute(update(Cycle).values(memory_bytes=None))
    command("owners", "set", "local", "--max-running", "0")
    assert why() == "local runs 0 cycles, and may run 0 at once."
    command("owners", "set", "local", "--max-running", "-1")
    assert "it comes next" in why()


def test_an_owner_may_have_only_so_many_jobs_waiting(
    api: httpx.Client, database: Database, command: Any
) -> None:
    submit(api)
    assert "max queued 2" in command("owners", "set", "local", "--max-queued", "2")
    submit(api)
    answer = api.post("/distillations", json={"preset": "demo"})
    assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
    assert "this owner may have 2" in answer.json()["detail"]
    claim_of(database, database.run(lambda session: plant_worker(session, "cpu")))
    submit(api)


def test_a_priority_is_changed_by_command_line(api: httpx.Client, database: Database, command: Any) -> None:
    first, second = submit(api), submit(api)
    assert "high" in command("queue", "priority", second, "high")
    (line,) = look(api, database)["lines"]
    assert [each["job_id"] for each in line["waiting"]] == [second, first]


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        (("queue", "hold", "nobody"), NotFound),
        (("owners", "set", "nobody", "--weight", "2"), NotFound),
        (("owners", "set", "local"), InvalidConfig),
        (("owners", "set", "local", "--weight", "0"), InvalidConfig),
        (("owners", "set", "local", "--max-queued", "99999999999"), InvalidConfig),
    ],
)
def test_what_cannot_be_is_refused(
    api: httpx.Client, command: Any, arguments: tuple[str, ...], refusal: type[Exception]
) -> None:
    submit(api)
    with pytest.raises(refusal):
        command(*arguments)


def test_a_job_that_has_ended_is_neither_held_nor_moved(api: httpx.Client, command: Any) -> None:
    job_id = submit(api)
    api.post(f"/jobs/{job_id}/cancel")
    for arguments in (("hold", job_id), ("release", job_id), ("priority", job_id, "high")):
        with pytest.raises(Conflict):
            command("queue", *arguments)


def test_the_same_commands_work_over_http_for_administrators(api: httpx.Client, command: Any) -> None:
    job_id, there = submit(api), ("--url", str(api.base_url))
    command("queue", "pause", "--reason", "power cut at noon", *there)
    assert api.get("/queue").json()["pause_reason"] == "power cut at noon"
    assert "goes on" in command("queue", "resume", *there)
    assert "was not paused" in command("queue", "resume", *there)
    command("queue", "hold", job_id, *there)
    assert api.get(f"/jobs/{job_id}").json()["held"] is True
    command("queue", "release", job_id, *there)
    command("queue", "priority", job_id, "high", *there)
    job = api.get(f"/jobs/{job_id}").json()
    assert (job["held"], job["priority"]) == (False, "high")
    assert "weight 3, max running 2" in command(
        "owners", "set", "local", "--weight", "3", "--max-running", "2", *there
    )
    assert "max running none" in command("owners", "set", "local", "--max-running", "-1", *there)
    for refused in (("queue", "hold", "nobody"), ("owners", "set", "local", "--weight", "0")):
        with pytest.raises(DmsaeError):
            command(*refused, *there)
