"""Submitting, watching, changing and cancelling over HTTP."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, text, update

from dmsae.service.claims import QueueRules
from dmsae.service.database import Database
from dmsae.service.queue_snapshots import take_snapshots
from dmsae.service.settings import Settings
from dmsae.service.tables import Attempt, Job
from tests.finished import claim_of, finish_cycles
from tests.planting import plant_worker
from tests.serving import served

DEMO = {"preset": "demo"}


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    with served(settings) as client:
        yield client


def submit(api: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = api.post("/distillations", json={**DEMO, **fields})
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def test_a_submission_is_accepted_stored_and_found_again(api: httpx.Client) -> None:
    answer = api.post("/distillations", json={**DEMO, "name": "one", "tags": ["x"]})
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/jobs/{job['id']}"
    assert (job["state"], job["owner"], job["progress"]["n_cycles"]) == ("queued", "local", 3)
    assert job["config"]["sae"]["n_latents"] == 1024
    for link in job["links"].values():
        if not link.endswith(("/cancel", "/retry", "/core")):
            assert api.get(link).status_code == 200, link
    assert api.get(answer.headers["Location"]).json() == job


def test_a_dry_run_describes_and_stores_nothing(api: httpx.Client) -> None:
    answer = api.post("/distillations?dry_run=true", json=DEMO)
    assert answer.status_code == 200
    cycles = answer.json()["cycles"]
    assert [cycle["n_core"] for cycle in cycles] == [0, 128, 240]
    assert all(6_150_000 < cycle["stored_bytes"] < 11_100_000 for cycle in cycles), cycles
    assert api.get("/jobs").json()["items"] == []
    assert api.post("/distillations?dry_run=true", json={**DEMO, "sae": {"k": 9999}}).status_code == 422


def test_a_refused_submission_names_field_value_and_rule_and_stores_nothing(api: httpx.Client) -> None:
    answer = api.post("/distillations", json={**DEMO, "sae": {"k": 2000}})
    problem = answer.json()
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert (problem["code"], problem["param"], problem["status"]) == ("invalid_config", "sae.k", 422)
    assert problem["errors"][0]["value"] == 2000
    assert "1024" in problem["errors"][0]["rule"]
    assert problem["request_id"] == answer.headers["X-Request-ID"]
    assert api.get("/jobs").json()["items"] == []


def test_a_list_is_filtered_and_read_in_pages_without_gaps(api: httpx.Client) -> None:
    ids = [submit(api, name=f"100% job_{i}", tags=[f"t{i % 2}"])["id"] for i in range(5)]
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(3):
        page = api.get("/jobs", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [job["id"] for job in page["items"]]
        cursor = page["next_cursor"]
    assert seen == ids[::-1]
    assert cursor is None
    counts = {"tag=t0": 3, "text=JOB_3": 1, "text=0% j": 5, "text=%25%25": 0}
    counts |= {"state=queued": 5, "state=failed": 0, "owner=local": 5, "owner=ada": 0}
    counts |= {"kind=distillation": 5, "kind=probe": 0, "model=SmolLM2": 5, "model=gemma": 0}
    for query, count in counts.items():
        assert len(api.get(f"/jobs?{query}").json()["items"]) == count, query


def test_changing_a_job_raises_its_version_once(api: httpx.Client, database: Database) -> None:
    job = submit(api, name="old")
    changed = api.patch(f"/jobs/{job['id']}", json={"name": None, "tags": ["b", "b"], "priority": "high"})
    assert changed.status_code == 200
    assert (changed.json()["name"], changed.json()["tags"]) == (None, ["b"])
    assert changed.json()["version"] > job["version"]
    again = api.patch(f"/jobs/{job['id']}", json={"tags": ["b"], "priority": "high"})
    assert again.json()["version"] == changed.json()["version"]
    with database.session_scope() as session:
        ranks = session.scalars(text("SELECT priority_rank FROM cycles")).all()
    assert ranks == [0, 0, 0]
    for body in ({"state": "failed"}, {"priority": None}, {"tags": "x"}, {"name": ""}):
        assert api.patch(f"/jobs/{job['id']}", json=body).status_code == 422


def test_cancelling_twice_is_cancelling_once(api: httpx.Client) -> None:
    job = submit(api)
    first = api.post(f"/jobs/{job['id']}/cancel")
    second = api.post(f"/jobs/{job['id']}/cancel")
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json()["state"] == second.json()["state"] == "cancelled"
    assert first.json()["version"] == second.json()["version"]


def test_a_job_is_deleted_once_it_has_ended(api: httpx.Client) -> None:
    path = f"/jobs/{submit(api)['id']}"
    refused = api.delete(path)
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert "cancel it first" in refused.json()["detail"]
    etag = api.post(f"{path}/cancel").headers["ETag"]
    for _ in range(2):
        gone = api.delete(path)
        assert (gone.status_code, gone.content) == (204, b"")
    assert api.get("/jobs").json()["items"] == []
    for answer in (
        api.get(path, headers={"If-None-Match": etag}),
        api.get(f"{path}/events"),
        api.patch(path, json={"name": "x"}),
        api.post(f"{path}/cancel"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "deleted")
    assert (api.delete("/jobs/job_none").status_code, api.delete("/jobs/job_none").json()["code"]) == (
        404,
        "not_found",
    )


def test_events_are_read_behind_a_number(api: httpx.Client) -> None:
    job = submit(api)
    api.post(f"/jobs/{job['id']}/cancel")
    all_events = api.get(f"/jobs/{job['id']}/events").json()
    assert [event["seq"] for event in all_events["items"]] == [1, 2, 3]
    behind = api.get(f"/jobs/{job['id']}/events?after=1&limit=1").json()
    assert [event["kind"] for event in behind["items"]] == ["job_cancelling"]
    assert behind["after"] == 2
    assert api.get(f"/jobs/{job['id']}/events?after=3").json() == {"items": [], "after": 3}


def test_an_etag_saves_the_answer_until_the_job_changes(api: httpx.Client) -> None:
    job = submit(api)
    path = f"/jobs/{job['id']}"
    waiting = api.get(path)
    assert waiting.headers["ETag"] == f'"{job["version"]}"'
    assert api.get(path, headers={"If-None-Match": waiting.headers["ETag"]}).status_code == 200
    api.post(f"{path}/cancel")
    assert api.get(path, headers={"If-None-Match": waiting.headers["ETag"]}).status_code == 200
    etag = api.get(path).headers["ETag"]
    unchanged = api.get(path, headers={"If-None-Match": f'"0", W/{etag}'})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_a_running_job_tells_phase_progress_and_time_left(api: httpx.Client, database: Database) -> None:
    job_id = submit(api)["id"]
    claim = claim_of(database, database.run(lambda session: plant_worker(session, "cpu")))
    line = {"step": 5, "n_steps": 10, "loss": 0.5, "time_left_s": 60.0}
    with database.session_scope() as session:
        said_at = func.now() - timedelta(seconds=20)
        values = {"phase": "training", "progress": line, "progress_at": said_at, "log_tail": "the end"}
        session.execute(update(Attempt).where(Attempt.id == claim.attempt_id).values(values))
    job = api.get(f"/jobs/{job_id}").json()
    progress = job["progress"]
    assert (job["state"], progress["phase"], progress["cycle_index"]) == ("running", "training", 0)
    assert progress["latest"] == line
    assert 100 <= progress["time_left_s"] <= 3 * 60
    assert progress["queue_position"] is None
    (log,) = api.get(f"/jobs/{job_id}/logs").json()["items"]
    assert (log["text"], log["cycle_index"], log["attempt_number"]) == ("the end", 0, 1)


def test_a_waiting_job_says_why(api: httpx.Client, database: Database) -> None:
    first, second = submit(api)["id"], submit(api)["id"]
    assert "No cpu worker" in api.get(f"/jobs/{first}").json()["state_reason"]
    database.run(lambda session: plant_worker(session, "cpu"))
    assert "not known yet" in api.get(f"/jobs/{first}").json()["state_reason"]
    database.run(lambda session: take_snapshots(session, QueueRules()))
    jobs = [api.get(f"/jobs/{job_id}").json() for job_id in (first, second)]
    assert [job["progress"]["queue_position"] for job in jobs] == [0, 1]
    assert "1 queued" in jobs[1]["state_reason"]
    with database.session_scope() as session:
        session.execute(update(Job).where(Job.id == second).values(held=True))
    assert "held" in api.get(f"/jobs/{second}").json()["state_reason"]


def test_a_finished_distillation_tells_cycles_core_lineage_and_origins(
    api: httpx.Client, database: Database
) -> None:
    job_id = submit(api)["id"]
    finish_cycles(database, explained_variance=0.7)
    path = f"/distillations/{job_id}"
    found = api.get(path).json()
    assert found["state"] == "succeeded"
    assert [cycle["state"] for cycle in found["cycles"]] == ["succeeded"] * 3
    assert found["last_core_id"] == found["cycles"][2]["output_core_id"]
    assert (found["stored_bytes"], [cycle["stored_bytes"] for cycle in found["cycles"]]) == (36, [12] * 3)
    assert api.get(f"{path}/cycles").json()["items"][1]["metrics"] == {"explained_variance": 0.7}
    core = api.get(f"{path}/core?min_selected=3").json()
    assert [latent["latent_id"] for latent in core["items"]] == [f"{job_id}.0.3"]
    lineage = api.get(f"{path}/lineage").json()["items"]
    assert [(latent["origin_cycle"], latent["dropped_at"]) for latent in lineage] == [
        (0, None),
        (0, 1),
        (0, 2),
        (1, None),
    ]
    assert api.get(f"{path}/origins").json()["matrix"] == [[3, 0, 0], [2, 1, 0], [1, 1, 0]]


def test_artifacts_have_links_that_carry_no_secret(
    api: httpx.Client, database: Database, settings: Settings
) -> None:
    job_id = submit(api)["id"]
    finish_cycles(database, n_cycles=1)
    (artifact,) = api.get(f"/jobs/{job_id}/artifacts").json()["items"]
    assert (artifact["name"], artifact["size_bytes"], artifact["cycle_index"]) == ("core/core.json", 12, 0)
    assert artifact["url"].startswith(str(settings.s3_endpoint_url))
    assert settings.s3_secret_key.get_secret_value() not in artifact["url"]
