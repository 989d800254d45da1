"""A clone starts from another job's resolved settings; work that was done is named, and reused if wanted."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from sqlalchemy import update

from dmsae.service.code_version import code_version
from dmsae.service.database import Database
from dmsae.service.deleting import make_tombstone
from dmsae.service.settings import Settings
from dmsae.service.tables import Cycle
from tests.conftest import RunningServices
from tests.finished import finish_cycles
from tests.planting import plant_worker
from tests.serving import fresh_database, served

DEMO = {"preset": "demo", "n_cycles": 1}


class Lab(NamedTuple):
    """An API, a finished distillation and a training around its core."""

    api: httpx.Client
    database: Database
    done: str
    training: str

    def post(self, path: str = "/distillations", **body: Any) -> dict[str, Any]:
        answer = self.api.post(path, json=body)
        assert answer.status_code in (200, 202), answer.text
        found: dict[str, Any] = answer.json()
        return {**found, "status": answer.status_code}

    def refused(self, path: str = "/distillations", **body: Any) -> tuple[str, str, str]:
        answer = self.api.post(path, json=body)
        assert answer.status_code == 422, answer.text
        (problem,) = answer.json()["errors"]
        return problem["param"], problem["code"], problem["rule"]


@pytest.fixture(scope="module")
def lab(services: RunningServices) -> Iterator[Lab]:
    with fresh_database(services) as url:
        env = {**services.env, "DMSAE_DATABASE_URL": url}
        settings = Settings(**{name.removeprefix("DMSAE_").lower(): v for name, v in env.items()})
        database = Database(url, wake_up=lambda _: None)
        worker_id = database.run(lambda session: plant_worker(session, "cpu"))
        with served(settings) as api:
            done = api.post("/distillations", json={**DEMO, "sae": {"k": 24}}).json()["id"]
            finish_cycles(database, n_cycles=1, worker_id=worker_id)
            core = {"kind": "selected", "cycle": {"job_id": done}}
            training = api.post("/trainings", json={"core": core, "seed": 5}).json()["id"]
            yield Lab(api, database, done, training)
        database.dispose()


def test_a_clone_is_the_same_but_for_what_is_set_and_says_so(lab: Lab) -> None:
    body = {"clone": lab.done, "set": {"sae": {"k": 64}, "seed": 9}, "name": "denser", "tags": ["x"]}
    made = lab.post(**body)
    origin = lab.api.get(f"/jobs/{lab.done}").json()
    assert made["config"] == {**origin["config"], "seed": 9, "sae": {**origin["config"]["sae"], "k": 64}}
    assert made["changes"] == {"sae.k": {"from": 24, "to": 64}, "seed": {"from": 0, "to": 9}}
    assert (made["cloned_from"], made["name"], made["tags"]) == (lab.done, "denser", ["x"])
    found = lab.api.get(f"/jobs/{made['id']}").json()
    assert (found["cloned_from"], found["changes"]) == (lab.done, made["changes"])
    assert (origin["cloned_from"], origin["changes"]) == (None, None)


def test_a_clone_without_changes_changes_nothing_and_a_clone_of_it_neither(lab: Lab) -> None:
    made = lab.post(clone=lab.done)
    again = lab.post(clone=made["id"])
    assert (made["changes"], again["changes"], again["cloned_from"]) == ({}, {}, made["id"])
    assert made["config"] == again["config"] == lab.api.get(f"/jobs/{lab.done}").json()["config"]


def test_a_training_is_cloned_with_its_core_or_around_another_one(lab: Lab) -> None:
    made = lab.post("/trainings", clone=lab.training, set={"seed": 6})
    assert made["changes"] == {"seed": {"from": 5, "to": 6}}
    core = made["config"]["core"]
    assert (core["kind"], core["cycle"]) == ("selected", {"job_id": lab.done, "cycle_index": 0})
    energy = {"kind": "energy", "cycle": {"job_id": lab.done}}
    other = lab.post("/trainings", clone=lab.training, set={"core": energy})
    assert other["changes"] == {"core.kind": {"from": "selected", "to": "energy"}}


def test_a_clone_may_be_swept(lab: Lab) -> None:
    group = lab.post("/trainings", clone=lab.training, sweep={"k": [16, 48], "seed": [1, 2]})
    jobs = [lab.api.get(f"/jobs/{job['id']}").json() for job in group["jobs"]]
    assert [(job["config"]["sae"]["k"], job["config"]["seed"]) for job in jobs] == [
        (16, 1),
        (16, 2),
        (48, 1),
        (48, 2),
    ]
    assert {job["cloned_from"] for job in jobs} == {lab.training}
    assert jobs[3]["changes"]["sae.k"] == {"from": 24, "to": 48}


def test_one_chain_of_several_is_cloned_as_that_one_chain(lab: Lab) -> None:
    group = lab.post(**DEMO, chains=2)
    second = lab.api.get(f"/jobs/{group['jobs'][1]['id']}").json()
    made = lab.post(clone=second["id"])
    assert (made["config"]["chains"], made["config"]["chain_index"], made["group_id"]) == (2, 1, None)
    assert made["changes"] == {}
    three = lab.post(clone=second["id"], set={"chains": 3})
    assert [job["point"]["chain_index"] for job in three["jobs"]] == [0, 1, 2]


def test_what_cannot_be_cloned_is_refused_with_the_reason(lab: Lab) -> None:
    gone = lab.post(**DEMO, seed=77)["id"]
    lab.api.post(f"/jobs/{gone}/cancel")
    lab.database.run(lambda session: make_tombstone(session, gone))
    assert lab.refused(clone="job_none") == ("clone", "clone_not_found", "there is no such job")
    assert lab.refused(clone=gone)[:2] == ("clone", "clone_deleted")
    assert lab.refused(clone=lab.training) == (
        "clone",
        "clone_unfit",
        "it is a training, and here distillations are submitted: POST /trainings",
    )
    assert lab.refused("/trainings", clone=lab.done)[:2] == ("clone", "clone_unfit")
    assert lab.refused(set={"seed": 1})[0] == "set"
    assert lab.refused(clone=lab.done, preset="demo")[0] == "preset"
    assert lab.refused(clone=lab.done, sae={"k": 3})[0] == "sae"
    assert lab.refused(clone=lab.done, set={"sae": {"kk": 3}})[:2] == ("set.sae.kk", "unknown_field")
    assert lab.refused(clone=lab.done, set={"sae": {"k": 5000}})[0] == "sae.k"
    assert lab.refused(clone=lab.done, set={"model": {"source": "hub", "id": "a"}})[0] == "set.model.revision"


def test_a_submission_names_the_finished_job_that_it_repeats_and_runs_all_the_same(lab: Lab) -> None:
    dry_run = lab.post("/distillations?dry_run=true", clone=lab.done)
    assert dry_run["identical_to"] == lab.done
    made = lab.post(**DEMO, sae={"k": 24}, time_limit_s=1000, name="by other words")
    assert (made["status"], made["identical_to"], made["state"]) == (202, lab.done, "queued")
    assert lab.api.get(f"/jobs/{made['id']}").json()["identical_to"] == lab.done
    assert lab.post(**DEMO, sae={"k": 24}, seed=1)["identical_to"] is None
    assert lab.api.get(f"/jobs/{lab.done}").json()["identical_to"] is None


def test_only_when_wanted_is_the_finished_job_answered_instead(lab: Lab) -> None:
    n_before = len(lab.api.get("/jobs?limit=200").json()["items"])
    answer = lab.api.post("/distillations?reuse=true", json={"clone": lab.done})
    job = answer.json()
    assert (answer.status_code, answer.headers["Location"]) == (200, f"/jobs/{lab.done}")
    assert (job["id"], job["reused"], job["state"]) == (lab.done, True, "succeeded")
    assert len(lab.api.get("/jobs?limit=200").json()["items"]) == n_before
    other = lab.post("/distillations?reuse=true", clone=lab.done, set={"seed": 4})
    assert (other["status"], other["state"], "reused" in other) == (202, "queued", False)
    refused = lab.api.post("/distillations?reuse=true", json={**DEMO, "chains": 2})
    assert (refused.status_code, refused.json()["param"]) == (422, "reuse")


def test_what_other_code_found_is_not_the_same(lab: Lab) -> None:
    def note(version: str | None) -> None:
        with lab.database.session_scope() as session:
            session.execute(update(Cycle).where(Cycle.job_id == lab.done).values(code_version=version))

    for version in ("other code", None):
        note(version)
        answer = lab.api.post("/distillations?reuse=true&dry_run=true", json={"clone": lab.done}).json()
        assert answer["identical_to"] is None
    note(code_version())
    answer = lab.api.post("/distillations?dry_run=true", json={"clone": lab.done}).json()
    assert answer["identical_to"] == lab.done
