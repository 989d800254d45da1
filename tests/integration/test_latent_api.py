"""Latents and cores over HTTP: a latent's story across jobs, published cores, lists as CSV and Parquet."""

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from pyarrow import parquet
from sqlalchemy import delete, text, update
from typer.testing import CliRunner

from dmsae import cli
from dmsae.client.client import Client
from dmsae.errors import DatabaseRefused, Deleted
from dmsae.service import keys, purging
from dmsae.service.claims import StoredFile
from dmsae.service.core_tables import CoreDrop, LatentMatch
from dmsae.service.database import Database
from dmsae.service.deleting import delete_job
from dmsae.service.latent_stories import tell_story
from dmsae.service.recording import record_success
from dmsae.service.results import Match, MatchResult
from dmsae.service.retention import delete_expired, note_expiry
from dmsae.service.settings import Settings
from dmsae.service.tables import ApiKey, Artifact, Core, CoreLatent, Job
from tests.conftest import RunningServices
from tests.finished import claim_of, finish_cycles
from tests.planting import plant_worker
from tests.serving import fresh_database, served
from tests.training_rows import given_entry, record, submit_distillations, submit_trainings, training_lineage


class Site(NamedTuple):
    """What a module's tests share."""

    database: Database
    api: httpx.Client
    worker_id: str
    """The one worker: another would leave work to it whose activations it holds."""


class Lab:
    """A distillation that finished, in a database that others share."""

    def __init__(self, site: Site) -> None:
        self.database, self.api, self.worker_id = site
        (source,) = submit_distillations(self.database)
        self.source = source.job.id
        finish_cycles(self.database, worker_id=self.worker_id)
        self.name = f"lab/{self.source.removeprefix('job_')}"
        self.training = ""

    def train(self, core: dict[str, Any] | None = None) -> str:
        """A training that keeps 0.3 and drops 1.20."""
        (training,) = submit_trainings(
            self.database, core=core or {"kind": "selected", "cycle": {"job_id": self.source}}
        )
        claim = claim_of(self.database, self.worker_id)
        given = [
            given_entry(0, f"{self.source}.0.3", parent_core_index=0, sae_index=0, score=0.5, rank=0),
            given_entry(1, f"{self.source}.1.20", parent_core_index=1, sae_index=1, score=0.4, rank=1),
        ]
        lineage = training_lineage(claim, given, kept=[0], new=[7])
        lineage["dropped"][0] |= {"score": 0.001, "share": 0.0005, "rank": 300}
        record(self.database, claim, lineage)
        return training.job.id

    def get(self, path: str, status: int = 200, **query: Any) -> Any:
        answer = self.api.get(path, params=query)
        assert answer.status_code == status, answer.text
        return answer.json()

    def core_of(self, cycle_index: int) -> str:
        core: str = self.get(f"/distillations/{self.source}/core", cycle_index=cycle_index)["core_id"]
        return core

    def publish(self, core_id: str, name: str, status: int = 200) -> Any:
        answer = self.api.post(f"/cores/{core_id}/publish", json={"name": name})
        assert answer.status_code == status, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def site(services: RunningServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A database and an API for all of this module: each test looks at jobs of its own."""
    with fresh_database(services) as url:
        folders = ("cache_dir", "work_dir", "lock_dir")
        fields = {name.removeprefix("DMSAE_").lower(): value for name, value in services.env.items()}
        fields |= {name: str(tmp_path_factory.mktemp(name)) for name in folders}
        database = Database(url, wake_up=lambda _: None)
        with served(Settings(**{**fields, "database_url": url})) as api:
            yield Site(database, api, database.run(lambda session: plant_worker(session, "cpu")))
        database.dispose()


@pytest.fixture
def lab(site: Site) -> Lab:
    return Lab(site)


@pytest.fixture(scope="module")
def known(site: Site) -> Lab:
    """One for tests that only read, with a training around its last core."""
    lab = Lab(site)
    lab.training = lab.train()
    return lab


def test_a_story_tells_each_selection_and_who_carries_the_latent_on(known: Lab) -> None:
    training = known.training
    story = known.get(f"/latents/{known.source}.0.3")
    assert (story["origin_cycle"], story["times_selected"], story["dropped_at"]) == (0, 3, None)
    assert [entry["cycle_index"] for entry in story["own"]["selections"]] == [0, 1, 2]
    assert [entry["decoder_cosine"] for entry in story["own"]["selections"]] == [None, 0.9, 0.9]
    assert story["own"]["selections"][1]["core_id"] == known.core_of(1)
    (descendant,) = story["descendants"]
    assert (descendant["job_id"], descendant["relation"]) == (training, "descended")
    assert descendant["given"]["score"] == 0.5
    assert [entry["cycle_index"] for entry in descendant["selections"]] == [0]
    assert descendant["drops"] == []
    assert known.get(f"/latents/{known.source}.0.3/descendants")["items"] == story["descendants"]


def test_a_story_tells_where_a_latent_was_dropped_and_how_it_was_measured_then(known: Lab) -> None:
    story = known.get(f"/latents/{known.source}.1.20")
    assert story["own"]["drops"] == []
    measured = {"cycle_index": 0, "score": 0.001, "share": 0.0005, "rank": 300}
    assert story["descendants"][0]["drops"] == [measured]
    unmeasured = {"cycle_index": 1, "score": None, "share": None, "rank": None}
    assert known.get(f"/latents/{known.source}.0.5")["own"]["drops"] == [unmeasured]


def test_a_latent_that_is_not_there_is_not_found(known: Lab) -> None:
    for latent_id in (f"{known.source}.0.4", "job_none.0.1", "x", f"{known.source}.0.3.1", "a.b.c"):
        assert known.get(f"/latents/{latent_id}", 404)["code"] == "not_found"


def test_matches_of_two_chains_stand_in_both_latents_stories_beside_chance(known: Lab) -> None:
    chains = [view.job.id for view in submit_distillations(known.database, chains=2)]
    for _ in chains:
        finish_cycles(known.database, worker_id=known.worker_id)
    claim = claim_of(known.database, known.worker_id)
    found = {"a_latent_id": f"{chains[0]}.0.3", "b_latent_id": f"{chains[1]}.1.20"}
    entry = {**found, "decoder_cosine": 0.9, "firing_correlation": 0.6}
    pair = {"a": 0, "b": 1, "matches": [entry, {"a_index": 1}], "best_cosine_random": 0.2, "best_cosine": 0.4}
    told = {"cores": ["a", "b"], "n_latents": [2, 2], "decoder_cosine": 0.7, "firing_correlation": 0.5}
    match = Match(**told, pairs=[pair], reproduced=[[], []], share_reproduced=[0.5, 0.5])
    file = StoredFile("match.json", f"{claim.object_prefix}match.json", 9, "0" * 64)
    result = MatchResult({}, match)
    known.database.run(lambda session: record_success(session, claim, artifacts=(file,), result=result))
    for one, other in (found.values(), reversed(found.values())):
        story = known.get(f"/latents/{one}")
        (matched,) = story["matches"]
        assert (matched["latent_id"], matched["relation"]) == (other, "matched")
        assert (matched["decoder_cosine"], matched["best_cosine_random"]) == (0.9, 0.2)
        assert matched["match_job_id"] == claim.job_id
        assert story["descendants"] == []
    with known.database.session_scope() as session:
        for job_id in (claim.job_id, *chains):
            delete_job(session, job_id, owner_id=None)
        session.execute(delete(Artifact).where(Artifact.job_id.in_([claim.job_id, *chains])))
        session.execute(text("UPDATE attempts SET closed_at = now() - interval '3 days'"))
        session.execute(update(Job).where(Job.deleted_at.is_not(None)).values(cleared_at=text("now()")))
    for job_id in chains:
        while not known.database.run(lambda session: purging.purge_job(session, job_id, limit=2)):  # noqa: B023
            pass
    with known.database.session_scope() as session:
        assert session.query(LatentMatch).count() == 0
        assert {drop.cycle_id for drop in session.query(CoreDrop)} != set()


def test_a_deleted_jobs_latents_have_a_story_as_long_as_another_job_carries_them(lab: Lab) -> None:
    training = lab.train()
    for job_id in (lab.source, training):
        lab.database.run(lambda session: delete_job(session, job_id, owner_id=None))  # noqa: B023
        if job_id == lab.source:
            story = lab.get(f"/latents/{lab.source}.0.3")
            assert story["own"]["deleted_at"] is not None
            assert [path["job_id"] for path in story["descendants"]] == [training]
            assert learned_by(lab, lab.source, training) == {training}
            assert len(lab.get("/latents", job_id=training)["items"]) == 3
    assert lab.get(f"/latents/{lab.source}.0.3", 404)["code"] == "deleted"
    assert learned_by(lab, lab.source, training) == set()
    with lab.database.session_scope() as session, pytest.raises(Deleted):
        tell_story(session, f"{lab.source}.0.3")


def learned_by(lab: Lab, *job_ids: str) -> set[str]:
    """Which of these jobs learned any latent of the list."""
    listed = lab.get("/latents", limit=200)
    assert listed["next_cursor"] is None
    return {item["origin_job_id"] for item in listed["items"]} & set(job_ids)


def test_latents_are_listed_by_job_and_in_an_order(known: Lab) -> None:
    training = known.training
    found = known.get("/latents", order="times_selected", min_times_selected=2)
    assert [
        (item["latent_id"].removeprefix(known.source), item["times_selected"])
        for item in found["items"]
        if item["origin_job_id"] == known.source
    ] == [
        (".0.3", 3),
        (".1.20", 2),
        (".0.8", 2),
    ]
    held = known.get("/latents", job_id=training, order="oldest")["items"]
    assert [item["latent_id"] for item in held] == [
        f"{known.source}.0.3",
        f"{known.source}.1.20",
        f"{training}.0.7",
    ]
    page = known.get("/latents", limit=1)
    refused = known.api.get("/latents", params={"cursor": page["next_cursor"], "order": "oldest"})
    assert (refused.status_code, refused.json()["param"]) == (400, "cursor")
    assert known.get("/latents", 422, origin_cycle=1)["param"] == "origin_cycle"
    assert known.get("/latents", 404, job_id="job_none")["code"] == "not_found"


def test_csv_and_parquet_hold_what_json_tells(known: Lab) -> None:
    training = known.training
    for path in ("/latents", f"/distillations/{known.source}/core", f"/trainings/{training}/core"):
        told = known.get(path, limit=200)["items"]
        assert as_parquet(known, path) == told
        assert as_csv(known, path) == [{name: as_text(value) for name, value in row.items()} for row in told]
    places = as_parquet(known, f"/trainings/{training}/lineage")
    assert [(row["latent_id"], row["cycle_index"], row["is_given"]) for row in places] == [
        (f"{known.source}.0.3", 0, True),
        (f"{known.source}.0.3", 0, False),
        (f"{known.source}.1.20", 0, True),
        (f"{training}.0.7", 0, False),
    ]
    origins = as_parquet(known, f"/distillations/{known.source}/origins")
    matrix = [(row["cycle_index"], row["origin_cycle"], row["n_latents"]) for row in origins]
    assert matrix == [(0, 0, 3), (1, 0, 2), (1, 1, 1), (2, 0, 1), (2, 1, 1)]


def as_parquet(lab: Lab, path: str) -> list[dict[str, Any]]:
    answer = lab.api.get(path, params={"format": "parquet"})
    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    rows: list[dict[str, Any]] = parquet.read_table(io.BytesIO(answer.content)).to_pylist()
    return rows


def as_csv(lab: Lab, path: str) -> list[dict[str, str]]:
    answer = lab.api.get(path, params={"format": "csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    return list(csv.DictReader(io.StringIO(answer.text)))


def as_text(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def test_another_format_or_a_page_of_csv_is_refused(known: Lab) -> None:
    problem = known.get("/latents", 422, format="xml")
    assert problem["errors"][0]["param"] == "format"
    assert all(name in problem["errors"][0]["rule"] for name in ("json", "csv", "parquet"))
    for path in ("/latents", f"/distillations/{known.source}/core"):
        assert known.get(path, 422, format="csv", limit=5)["param"] == "limit"
    assert known.get("/distillations/job_none/core", 404, format="csv")["code"] == "not_found"


def test_a_name_counts_its_versions_and_stays_with_its_core(lab: Lab) -> None:
    cores = [lab.core_of(index) for index in range(3)]
    first = lab.publish(cores[0], lab.name)
    assert (first["published_as"], first["version"], first["cycle_index"]) == (f"{lab.name}@1", 1, 0)
    assert lab.publish(cores[0], lab.name) == first
    assert lab.publish(cores[0], "lab/other", 409)["code"] == "conflict"
    assert lab.publish(cores[1], lab.name)["published_as"] == f"{lab.name}@2"
    assert lab.get(f"/cores/{lab.name}@1") == lab.get(f"/cores/{cores[0]}") == first
    assert lab.get(f"/cores/{lab.name}")["version"] == 2
    assert lab.get(f"/cores/{lab.name}@3", 404)["code"] == "not_found"
    assert [core["version"] for core in lab.get("/cores", name=lab.name)["items"]] == [2, 1]
    unpublished = lab.get("/cores", is_published=False, job_id=lab.source)
    assert [core["core_id"] for core in unpublished["items"]] == [cores[2]]
    assert lab.get(f"/latents/{lab.source}.0.3")["own"]["selections"][1]["published_as"] == f"{lab.name}@2"


@pytest.fixture
def keys_go_again(site: Site) -> Iterator[None]:
    """Take away the keys that a test made: while there is one, everybody needs one."""
    yield
    with site.database.session_scope() as session:
        session.execute(delete(ApiKey))


@pytest.mark.usefixtures("keys_go_again")
def test_a_name_belongs_to_whoever_published_under_it_first(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.publish(lab.core_of(0), lab.name)
    bob = lab.database.run(lambda session: keys.ensure_owner(session, "bob")).id
    (other,) = submit_distillations(lab.database)
    finish_cycles(lab.database, worker_id=lab.worker_id)
    with lab.database.session_scope() as session:
        session.execute(update(Job).where(Job.id == other.job.id).values(owner_id=bob))
    core_id = lab.get(f"/distillations/{other.job.id}/core")["core_id"]
    key = lab.database.run(lambda session: keys.create_key(session, "bob"))[1]
    monkeypatch.setitem(lab.api.headers, "Authorization", f"Bearer {key}")
    assert lab.publish(core_id, lab.name, 403)["code"] == "forbidden"
    assert lab.publish(lab.core_of(1), "lab/mine", 403)["code"] == "forbidden"
    assert lab.publish(core_id, "lab/mine")["published_by"] == "bob"


def test_what_is_published_is_neither_changed_nor_deleted_and_its_job_stays(lab: Lab) -> None:
    core_id = lab.core_of(1)
    lab.publish(core_id, lab.name)
    statements = (
        update(Core).where(Core.id == core_id).values(n_latents=1),
        update(Core).where(Core.id == core_id).values(name=None),
        delete(CoreLatent).where(CoreLatent.core_id == core_id),
        update(CoreLatent).where(CoreLatent.core_id == core_id).values(score=2.0),
    )
    for statement in statements:
        with pytest.raises(DatabaseRefused), lab.database.session_scope() as session:
            session.execute(statement)
    answer = lab.api.delete(f"/jobs/{lab.source}")
    assert (answer.status_code, f"{lab.name}@1" in answer.json()["detail"]) == (409, True)
    with lab.database.session_scope() as session:
        own = update(Job).where(Job.id == lab.source)
        session.execute(own.values(finished_at=text("now() - interval '9 days'")))
        note_expiry(session, default_days=1, limit=1000)
        assert session.get_one(Job, lab.source).expires_at is None
        session.execute(own.values(expires_at=text("now() - interval '1 day'")))
        assert delete_expired(session, limit=10) == []


def test_a_training_refers_to_a_published_core_by_its_name(lab: Lab) -> None:
    lab.publish(lab.core_of(2), lab.name)
    training = lab.train({"kind": "published", "name": f"{lab.name}@1"})
    core = lab.get(f"/trainings/{training}")["config"]["core"]
    cycle = {"job_id": lab.source, "cycle_index": 2}
    assert core == {"kind": "selected", "cycle": cycle, "published_as": f"{lab.name}@1"}
    for wrong in (
        {"kind": "published", "name": f"{lab.name}@2"},
        {"kind": "published", "name": lab.name},
        {"kind": "selected", "cycle": {**cycle, "cycle_index": 1}, "published_as": f"{lab.name}@1"},
    ):
        refused = lab.api.post("/trainings", json={"core": wrong})
        assert refused.status_code == 422, wrong
        assert refused.json()["param"] in ("core.name", "core.published_as")
    given = lab.get("/cores", job_id=training)["items"]
    assert sorted(core["kind"] for core in given) == ["selected", "selected"]
    own = lab.get(f"/trainings/{training}/core")["core_id"]
    (made,) = [core["core_id"] for core in given if core["core_id"] != own]
    assert lab.publish(made, "lab/given", 409)["code"] == "conflict"


def test_the_command_line_shows_lineage_one_latent_and_latents(known: Lab) -> None:
    training = known.training
    url = ["--url", str(known.api.base_url)]

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(cli.app, [*arguments, *url], env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        # the API logs from a thread of this process, into the same output
        is_log = re.compile(r"\d{4}-\d\d-\d\d ")
        return "\n".join(line for line in done.output.splitlines() if not is_log.match(line))

    latent_id = f"{known.source}.0.3"
    lines = [json.loads(line) for line in said("lineage", training, "--json").splitlines()]
    assert [line["latent_id"] for line in lines] == [latent_id, f"{known.source}.1.20", f"{training}.0.7"]
    told = {**known.get(f"/latents/{latent_id}"), "snippets": None}
    assert json.loads(said("latent", latent_id, "--json")) == told
    assert "given (selected)" in said("latent", latent_id)
    chosen = said("latents", "--origin-job", known.source, "--alive", "--order", "oldest", "--json")
    assert [json.loads(line)["latent_id"] for line in chosen.splitlines()] == [
        latent_id,
        f"{known.source}.1.20",
    ]
    assert latent_id in said("latents", "--min-times-selected", "3")
    assert "0, 1, 2" in said("lineage", known.source)
    with Client(str(known.api.base_url)) as client:
        published = client.cores.publish(known.core_of(0), known.name)
        again = client.cores.get(f"{known.name}@1")
        assert list(client.cores.find(name=known.name)) == [again] == [published]
