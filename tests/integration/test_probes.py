"""Probes over HTTP: what a request becomes, what is refused and why, and where the answer is told."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from sqlalchemy import select

from dmsae.probe_config import ProbeSpec
from dmsae.service import results
from dmsae.service.claims import Claim, StoredFile
from dmsae.service.core_tables import LatentMatch
from dmsae.service.database import Database
from dmsae.service.recording import record_failure, record_success
from dmsae.service.results import read_probe
from dmsae.service.settings import Settings
from dmsae.service.tables import Cycle
from dmsae.service.uploads import UPLOADS
from tests.conftest import RunningServices
from tests.finished import STEPS, claim_of
from tests.planting import make_lineage, plant_worker
from tests.serving import fresh_database, served
from tests.training_rows import record, submit_distillations

LOCAL_TEXT = "/no/such/root/sae"
SAE_FILES = ("cfg.json", "sae_weights.safetensors")


class Lab(NamedTuple):
    """An API beside two finished distillations and one that has not begun."""

    api: httpx.Client
    database: Database
    worker_id: str
    source: str
    """Its cores: 0.3, 0.5, 0.8; then 0.3, 0.8, 1.20; at last 0.3 and 1.20."""
    other: str
    queued: str

    def ask(self, kind: str, **body: Any) -> httpx.Response:
        core = body.pop("core", {"job": self.source})
        query, headers = body.pop("query", {}), body.pop("headers", {})
        asked = {"kind": kind, "core": core, **body}
        return self.api.post("/probes", json=asked, params=query, headers=headers)

    def queue(self, kind: str, **body: Any) -> Any:
        answer = self.ask(kind, **body)
        assert answer.status_code == 202, answer.text
        return answer.json()

    def claim(self, job_id: str) -> Claim:
        """Claim cycles until this job's, cancelling what else waits."""
        for job in self.api.get("/jobs?state=queued&limit=200").json()["items"]:
            if job["id"] != job_id:
                self.api.post(f"/jobs/{job['id']}/cancel")
        return claim_of(self.database, self.worker_id)

    def finish(self, claim: Claim, found: dict[str, Any], folder: Path) -> None:
        """Record what a trainer left in a folder, as a worker reads it."""
        for name, written in (("spec", claim.spec), ("probe", found), ("metrics", {"seconds": 1.5})):
            (folder / f"{name}.json").write_text(json.dumps(written))
        file = StoredFile("probe.json", f"{claim.object_prefix}probe.json", 12, "0" * 64)
        result = read_probe(folder)
        self.database.run(lambda session: record_success(session, claim, artifacts=(file,), result=result))


def finish(database: Database, worker_id: str) -> None:
    """Finish the one job that is queued, with every file of its cycles."""
    core: list[Any] = []
    for step in STEPS:
        claim = claim_of(database, worker_id)
        lineage = make_lineage(claim, core, **step)
        core = lineage["core"]
        record(database, claim, lineage)


@pytest.fixture(scope="module")
def lab(services: RunningServices) -> Iterator[Lab]:
    with fresh_database(services) as url:
        env = {**services.env, "DMSAE_DATABASE_URL": url}
        settings = Settings(**{name.removeprefix("DMSAE_").lower(): v for name, v in env.items()})
        database = Database(url, wake_up=lambda _: None)
        worker_id = database.run(lambda session: plant_worker(session, "cpu"))
        made = []
        for seed in (3, 4):
            made += [view.job.id for view in submit_distillations(database, seed=seed)]
            finish(database, worker_id)
        (queued,) = submit_distillations(database)
        with served(settings) as api:
            yield Lab(api, database, worker_id, *made, queued.job.id)
        database.dispose()


def test_a_prompt_is_queued_with_the_settings_of_the_cores_own_job(lab: Lab) -> None:
    latent = f"{lab.source}.0.3"
    change = {"kind": "steer", "strength": 40}
    answer = lab.ask("prompt", prompt="Hello, ", latent=latent, change=change, name="hello", priority="high")
    probe = answer.json()
    assert answer.headers["Location"] == f"/probes/{probe['id']}" == probe["links"]["probe"]
    assert (probe["kind"], probe["state"], probe["priority"], probe["name"]) == (
        *("probe", "queued", "high"),
        "hello",
    )
    assert probe["result"] is None
    config, own = probe["config"], lab.api.get(f"/jobs/{lab.source}").json()["config"]
    shared = ("model", "data", "activations", "device", "n_threads", "seed")
    assert {name: config[name] for name in shared} == {name: own[name] for name in shared}
    assert config["core"] == {"job": lab.source, "cycle": 2}
    assert (config["latent"], config["n_top"], config["n_new_tokens"]) == (latent, 10, 20)
    assert config["change"] == {"kind": "steer", "strength": 40.0}
    read = lab.api.get(f"/probes/{probe['id']}")
    assert read.status_code == 200
    assert read.json()["result"] is None
    listed = lab.api.get("/jobs", params={"kind": "probe", "text": "hello"}).json()["items"]
    assert [job["id"] for job in listed] == [probe["id"]]
    assert lab.api.get(f"/distillations/{probe['id']}").status_code == 404
    assert lab.api.get(f"/probes/{lab.source}").status_code == 404


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("prompt", {}, {("prompt", "missing_field")}),
        ("match", {}, {("other", "missing_field")}),
        ("poem", {}, {("kind", "invalid_value")}),
        ("prompt", {"prompt": ""}, {("prompt", "invalid_value")}),
        ("prompt", {"prompt": "a\0b"}, {("prompt", "invalid_value")}),
        ("prompt", {"prompt": "a" * 20_001}, {("prompt", "invalid_value")}),
        ("prompt", {"prompt": "a", "latents": ["a.0.1"]}, {("latents", "unknown_field")}),
        (
            "logit_lens",
            {"n_tokens": 5, "prompt": "a"},
            {("n_tokens", "unknown_field"), ("prompt", "unknown_field")},
        ),
        ("prompt", {"prompt": "a", "poem": 1}, {("poem", "unknown_field")}),
        ("prompt", {"prompt": "a", "change": {"kind": "ablate"}}, {("latent", "invalid_value")}),
        ("prompt", {"prompt": "a", "change": {"kind": "melt"}}, {("change", "invalid_value")}),
        ("prompt", {"prompt": "a", "change": {"strength": 1}}, {("change.kind", "missing_field")}),
        (
            "prompt",
            {"prompt": "a", "change": {"kind": "steer", "strength": 1e9}},
            {("change.strength", "invalid_value")},
        ),
        ("prompt", {"prompt": "a", "latent": "SOURCE.0.5"}, {("latent", "latent_not_in_core")}),
        (
            "logit_lens",
            {"latents": ["SOURCE.0.3", "SOURCE.0.5", "OTHER.0.3"]},
            {("latents.1", "latent_not_in_core"), ("latents.2", "latent_not_in_core")},
        ),
        ("logit_lens", {"core": {"job": "job_none"}}, {("core.job", "core_not_found")}),
        ("logit_lens", {"core": {"job": "QUEUED"}}, {("core.job", "core_not_ready")}),
        ("logit_lens", {"core": {"job": "SOURCE", "cycle": 9}}, {("core.cycle", "core_not_found")}),
        ("logit_lens", {"core": {"cycle": 1}}, {("core.job", "missing_field")}),
        ("logit_lens", {"core": {"name": "lab/none@1"}}, {("core.name", "core_not_found")}),
        ("logit_lens", {"core": {"name": "lab/none"}}, {("core.name", "invalid_value")}),
        ("logit_lens", {"core": {"name": "lab/a@1", "job": "SOURCE"}}, {("core.name", "invalid_value")}),
        ("match", {"other": {"kind": "published", "name": "lab/a@9"}}, {("other.name", "core_not_found")}),
        ("match", {"other": {"kind": "cycle", "job": "SOURCE"}}, {("other.job", "core_mismatch")}),
        ("match", {"other": {"kind": "cycle", "job": "job_none"}}, {("other.job", "core_not_found")}),
        ("match", {"other": {"kind": "folder", "path": LOCAL_TEXT}}, {("other.path", "path_not_allowed")}),
        (
            "match",
            {"other": {"kind": "objects", "objects": [{"key": "a"}] * 2}},
            {("other.objects", "invalid_value")},
        ),
        (
            "match",
            {"other": {"kind": "objects", "objects": [{"key": f"{UPLOADS}x/cfg.json"}]}},
            {("other.objects", "invalid_value")},
        ),
        (
            "match",
            {"other": {"kind": "objects", "objects": [{"key": f"{UPLOADS}x/{name}"} for name in SAE_FILES]}},
            {("other.objects.0.key", "object_not_found"), ("other.objects.1.key", "object_not_found")},
        ),
        (
            "match",
            {"other": {"kind": "objects", "objects": [{"key": f"jobs/x/{name}"} for name in SAE_FILES]}},
            {("other.objects.0.key", "object_not_allowed"), ("other.objects.1.key", "object_not_allowed")},
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_its_field(
    lab: Lab, kind: str, body: dict[str, Any], expected: set[tuple[str, str]]
) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: filled(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [filled(inner) for inner in value]
        names = {"SOURCE": lab.source, "OTHER": lab.other, "QUEUED": lab.queued}
        if not isinstance(value, str):
            return value
        first, dot, rest = value.partition(".")
        return names.get(first, first) + dot + rest

    n_before = len(lab.api.get("/jobs?kind=probe&limit=200").json()["items"])
    answer = lab.ask(kind, **filled(body))
    assert answer.status_code == 422, answer.text
    assert {(error["param"], error["code"]) for error in answer.json()["errors"]} == expected
    assert len(lab.api.get("/jobs?kind=probe&limit=200").json()["items"]) == n_before


def test_a_dry_run_says_what_it_takes_and_a_key_makes_one_probe(lab: Lab) -> None:
    before = lab.api.get("/jobs?kind=probe&limit=200").json()["items"]
    told = lab.ask("logit_lens", query={"dry_run": "true"})
    assert told.status_code == 200
    assert told.json()["n_core"] == 2
    assert told.json()["config"]["core"]["cycle"] == 2
    assert 0.5e9 < told.json()["memory"]["value"] < 4e9
    assert len(lab.api.get("/jobs?kind=probe&limit=200").json()["items"]) == len(before)
    twice = [lab.ask("logit_lens", headers={"Idempotency-Key": "lens-1"}) for _ in range(2)]
    assert twice[0].json()["id"] == twice[1].json()["id"]
    assert twice[1].headers["Idempotency-Replayed"] == "true"
    assert twice[1].headers["Location"] == twice[0].headers["Location"]


def test_a_worker_is_handed_a_probe_spec_and_the_core_alone(lab: Lab, tmp_path: Path) -> None:
    probe = lab.queue("logit_lens", latents=[f"{lab.source}.1.20"])
    claim = lab.claim(probe["id"])
    spec = ProbeSpec.model_validate(claim.spec)
    assert (spec.job_id, spec.config.kind, spec.config.core.cycle) == (probe["id"], "logit_lens", 2)
    folder = f"{lab.source}.2"
    names = {file.name for file in claim.source_files}
    assert names == {
        f"{folder}/{name}" for name in ("core/core.json", "core/core.safetensors", "sae/cfg.json")
    }
    assert (claim.input_files, claim.cache_key) == ((), None)
    refused = lab.api.delete(f"/jobs/{lab.source}")
    assert refused.status_code == 409
    assert probe["id"] in refused.json()["detail"]
    lab.finish(claim, {"kind": "logit_lens", "latents": [{"promoted": ["x\0y"]}]}, tmp_path)
    done = lab.api.get(f"/probes/{probe['id']}").json()
    shown = {"kind": "logit_lens", "latents": [{"promoted": ["x\ufffdy"]}]}
    assert (done["state"], done["result"]) == ("succeeded", shown)


def test_a_failed_probe_is_retried_as_any_job_is(lab: Lab) -> None:
    probe = lab.queue("prompt", prompt="a b c")
    claim = lab.claim(probe["id"])
    told = "prompt: is 9000 tokens"
    lab.database.run(
        lambda session: record_failure(session, claim, code="context_too_long", message=told, param="prompt")
    )
    failed = lab.api.get(f"/probes/{probe['id']}").json()
    assert (failed["state"], failed["state_reason"], failed["result"]) == ("failed", told, None)
    assert failed["error"]["param"] == "prompt"
    again = lab.api.post(f"/jobs/{probe['id']}/retry")
    assert (again.status_code, again.json()["state"]) == (200, "queued")
    assert lab.api.post(f"/jobs/{probe['id']}/cancel").json()["state"] == "cancelled"
    clone = lab.api.post("/distillations", json={"clone": probe["id"]})
    assert clone.json()["errors"][0]["code"] == "clone_unfit"


def matched(lab: Lab, row: str, other: str, cosine: float) -> dict[str, Any]:
    return {
        "latent_id": f"{lab.source}.{row}",
        "core_index": 0,
        "other_latent_id": f"{lab.other}.{other}",
        "other_index": 0,
        "decoder_cosine": cosine,
        "firing_correlation": None,
        "is_same_latent": False,
    }


def test_a_match_is_told_in_both_latents_stories_beside_what_chance_gives(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    about = [f"/distillations/{lab.source}/{name}" for name in ("origins", "lineage", "core")]
    before = [lab.api.get(path).json() for path in about]
    probe = lab.queue("match", other={"kind": "cycle", "job": lab.other, "cycle": 2}, n_tokens=300)
    assert probe["config"]["evaluation"] == {"n_tokens": 300}
    assert probe["config"]["other"] == {"kind": "cycle", "job": lab.other, "cycle": 2}
    claim = lab.claim(probe["id"])
    assert {file.name.partition("/")[0] for file in claim.source_files} == {
        f"{lab.source}.2",
        f"{lab.other}.2",
    }
    monkeypatch.setattr(results, "MOST_MATCHES", 1)
    pairs = [matched(lab, "0.3", "1.20", 0.93), matched(lab, "1.20", "0.3", 0.81)]
    chance = {"best_cosine": 0.8, "best_cosine_random": 0.2}
    lab.finish(claim, {"kind": "match", "n_matches": 2, **chance, "matches": pairs}, tmp_path)
    result = lab.api.get(f"/probes/{probe['id']}").json()["result"]
    assert (result["n_matches"], result["matches"]) == (2, pairs[:1])
    for own, its in (("0.3", "1.20"), ("1.20", "0.3")):
        (told,) = lab.api.get(f"/latents/{lab.source}.{own}").json()["matches"]
        assert (told["latent_id"], told["match_job_id"]) == (f"{lab.other}.{its}", probe["id"])
        assert (told["best_cosine_random"], told["firing_correlation"]) == (0.2, None)
        (back,) = lab.api.get(f"/latents/{lab.other}.{its}").json()["matches"]
        assert back["latent_id"] == f"{lab.source}.{own}"
    assert [lab.api.get(path).json() for path in about] == before


def test_a_published_core_is_asked_by_its_name_and_named_as_the_other(lab: Lab) -> None:
    """Resolved when it is asked: what is published never changes."""
    page = lab.api.get(f"/distillations/{lab.other}/core").json()
    published = lab.api.post(f"/cores/{page['core_id']}/publish", json={"name": "lab/tiny-l1"}).json()
    name = published["published_as"]
    by_name = lab.queue("logit_lens", core={"name": name})
    assert by_name["config"]["core"] == {"job": lab.other, "cycle": 2}
    other = {"kind": "published", "name": name}
    probe = lab.queue("match", other=other)
    assert probe["config"]["other"] == {"kind": "cycle", "job": lab.other, "cycle": 2}
    itself = lab.ask("match", core={"name": name}, other=other)
    (problem,) = itself.json()["errors"]
    assert (problem["param"], problem["code"]) == ("other.name", "core_mismatch")


def test_an_sae_as_gemma_scope_publishes_it_is_one_upload(lab: Lab) -> None:
    upload = lab.api.post("/uploads", json={"filename": "params.npz", "size_bytes": 4}).json()
    put = httpx.put(upload["url"], content=b"abcd", headers=upload["headers"], trust_env=False)
    assert put.status_code == 200
    probe = lab.queue("match", other={"kind": "objects", "objects": [{"key": upload["key"]}]})
    (stored,) = probe["config"]["other"]["objects"]
    assert (stored["key"], stored["size_bytes"]) == (upload["key"], 4)


def test_latents_of_a_folder_of_ones_own_are_matched_by_what_was_uploaded(lab: Lab, tmp_path: Path) -> None:
    keys = []
    for name in SAE_FILES:
        upload = lab.api.post("/uploads", json={"filename": name, "size_bytes": 4}).json()
        put = httpx.put(upload["url"], content=b"abcd", headers=upload["headers"], trust_env=False)
        assert put.status_code == 200
        keys.append(upload["key"])
    other = {"kind": "objects", "objects": [{"key": key} for key in keys]}
    probe = lab.queue("match", other=other)
    objects = probe["config"]["other"]["objects"]
    assert [(each["key"], each["size_bytes"]) for each in objects] == [(key, 4) for key in keys]
    assert all(each["etag"] for each in objects)
    claim = lab.claim(probe["id"])
    pair = {**matched(lab, "0.3", "0.3", 0.9), "other_latent_id": None}
    lab.finish(claim, {"kind": "match", "matches": [pair]}, tmp_path)
    with lab.database.session_scope() as session:
        cycle_id = session.scalars(select(Cycle.id).where(Cycle.job_id == probe["id"])).one()
        rows = session.scalars(select(LatentMatch).where(LatentMatch.cycle_id == cycle_id)).all()
    assert rows == []
    refused = lab.api.post("/uploads", json={"filename": "weights.pt", "size_bytes": 4})
    assert refused.status_code == 422
    assert "cfg.json" in refused.json()["errors"][0]["rule"]
