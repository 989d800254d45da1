"""Trainings over HTTP: what a request inherits, and which cores are refused with the values that differ."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from pydantic import TypeAdapter

from dmsae.config import CoreTrainingConfig, CycleSpec
from dmsae.service.database import Database
from dmsae.service.deleting import delete_job
from dmsae.service.settings import Settings
from dmsae.service.tables import Cycle, Job
from tests.conftest import RunningServices
from tests.finished import finish_cycles
from tests.planting import plant_worker
from tests.serving import fresh_database, served
from tests.training_rows import submit_distillations

SAE = {"n_latents": 300, "k": 16, "block_widths": [100, 200, 280]}
METRICS = {"prefix_widths": [298, 299, 300]}
"""So wide a first prefix that two latents are left outside of it."""


class Lab(NamedTuple):
    """An API beside one finished distillation, a deleted one and one that has not begun."""

    api: httpx.Client
    database: Database
    source: str
    """Its cores: 0.3, 0.5, 0.8; then 0.3, 0.8, 1.20; at last 0.3 and 1.20."""
    deleted: str
    queued: str

    def submit(self, **body: Any) -> httpx.Response:
        return self.api.post("/trainings", json=body)

    def core(self, kind: str = "selected", **fields: Any) -> dict[str, Any]:
        return {"kind": kind, "cycle": {"job_id": self.source}, **fields}

    def refused(self, **body: Any) -> list[tuple[str, Any, str, str]]:
        answer = self.submit(**body)
        assert answer.status_code == 422, answer.text
        return [(e["param"], e["value"], e["rule"], e["code"]) for e in answer.json()["errors"]]


@pytest.fixture(scope="module")
def lab(services: RunningServices) -> Iterator[Lab]:
    with fresh_database(services) as url:
        env = {**services.env, "DMSAE_DATABASE_URL": url}
        settings = Settings(**{name.removeprefix("DMSAE_").lower(): v for name, v in env.items()})
        database = Database(url, wake_up=lambda _: None)
        (source,) = submit_distillations(database, seed=3, sae=SAE, selection={"max_core": 19})
        worker_id = database.run(lambda session: plant_worker(session, "cpu"))
        finish_cycles(database, worker_id=worker_id, **METRICS)
        (deleted,) = submit_distillations(database, n_cycles=1)
        finish_cycles(database, n_cycles=1, worker_id=worker_id)
        owner_id = source.job.owner_id
        database.run(lambda session: delete_job(session, deleted.job.id, owner_id=owner_id))
        (queued,) = submit_distillations(database)
        with served(settings) as api:
            yield Lab(api, database, source.job.id, deleted.job.id, queued.job.id)
        database.dispose()


def test_a_core_alone_is_a_whole_request(lab: Lab) -> None:
    answer = lab.submit(core=lab.core())
    assert answer.status_code == 202, answer.text
    training = answer.json()
    assert answer.headers["Location"] == f"/jobs/{training['id']}"
    source = lab.api.get(f"/distillations/{lab.source}").json()["config"]
    config = CoreTrainingConfig.model_validate(training["config"]).model_dump(mode="json")
    assert config == training["config"]
    cycle = {"job_id": lab.source, "cycle_index": 2}
    assert config.pop("core") == {"kind": "selected", "cycle": cycle, "published_as": None}
    assert config == {name: value for name, value in source.items() if name != "n_cycles"}
    assert (training["kind"], training["progress"]["n_cycles"], training["group_id"]) == ("training", 1, None)
    for name in ("training", "cycles", "lineage", "origins"):
        assert lab.api.get(training["links"][name]).status_code == 200
    shown = lab.api.get(training["links"]["training"]).json()
    assert (shown["given"], shown["core_id"]) == (None, None)
    assert lab.api.get(f"/distillations/{training['id']}").status_code == 404


def test_what_is_set_changes_that_alone(lab: Lab) -> None:
    plain = lab.submit(core=lab.core()).json()["config"]
    changed = lab.submit(core=lab.core(), sae={"k": 8}).json()["config"]
    assert changed == {**plain, "sae": {**plain["sae"], "k": 8}}


def test_a_width_matched_control_is_as_wide_as_the_core_that_it_names(lab: Lab) -> None:
    core = {"kind": "none", "width_of": {"job_id": lab.source, "cycle_index": 1}}
    answer = lab.api.post("/trainings?dry_run=true", json={"core": core})
    assert answer.status_code == 200, answer.text
    (cycle,) = answer.json()["cycles"]
    assert (cycle["n_core"], cycle["prefix_widths"], cycle["is_exact"]) == (0, [103, 203, 283, 300], True)
    training = lab.submit(core=core).json()
    assert training["config"]["core"]["n_matched"] == 3
    (refused,) = lab.refused(core={**core, "n_matched": 4})
    assert refused == (
        "core.n_matched",
        4,
        "the core of width_of has 3 latents: leave one of them out",
        "invalid_value",
    )


def test_a_dry_run_knows_the_core_that_is_given(lab: Lab) -> None:
    told = lab.api.post("/trainings?dry_run=true", json={"core": lab.core("filtered", min_selected=3)}).json()
    (cycle,) = told["cycles"]
    assert (cycle["n_core"], cycle["prefix_widths"]) == (1, [101, 201, 281, 300])
    assert told["memory"]["value"] > 0
    assert cycle["stored_bytes"] > 4 * 2 * 300 * 576


@pytest.mark.parametrize(
    ("settings", "param", "value", "own"),
    [
        ({"model": {"source": "hub", "id": "a/b", "revision": "0" * 40}}, "model.source", "hub", "builtin"),
        ({"activations": {"layer": 9}}, "activations.layer", 9, "10"),
        ({"activations": {"hook": "mlp_out"}}, "activations.hook", "mlp_out", "resid_post"),
        ({"activations": {"model_dtype": "bfloat16"}}, "activations.model_dtype", "bfloat16", "float32"),
        ({"activations": {"special_ids": [0]}}, "activations.special_ids", [0], "[0, 1, 2]"),
        ({"data": {"split": [0.9, 0.05, 0.05]}}, "data.split", [0.9, 0.05, 0.05], "[0.8, 0.1, 0.1]"),
        (
            {"activations": {"scale": {"rms": 2.0, "median_norm": 14.0}}},
            "activations.scale.rms",
            2.0,
            "2.5",
        ),
    ],
)
def test_a_core_of_other_activations_is_refused_with_both_values(
    lab: Lab, settings: dict[str, Any], param: str, value: Any, own: str
) -> None:
    (refused,) = lab.refused(core=lab.core("energy"), **settings)
    assert (refused[0], refused[1], refused[3]) == (param, value, "core_mismatch")
    assert own in refused[2]


def test_a_core_that_the_layout_has_no_room_for_is_refused_with_both_widths(lab: Lab) -> None:
    wide = {"block_widths": [100, 200, 298]}
    (refused,) = lab.refused(core=lab.core(), sae=wide, selection={"max_core": 1})
    assert (refused[0], refused[1], refused[3]) == ("core", 2, "core_too_large")
    assert "298" in refused[2]
    assert "300" in refused[2]
    cycle = {"job_id": lab.source, "cycle_index": 1}
    (refused,) = lab.refused(core={"kind": "random_latents", "cycle": cycle})
    assert (refused[0], refused[1], refused[3]) == ("core", 3, "core_too_large")
    assert "only 2 latents" in refused[2]


def test_a_core_of_which_nothing_is_left_is_refused(lab: Lab) -> None:
    (refused,) = lab.refused(core=lab.core("filtered", min_selected=4))
    assert (refused[0], refused[1], refused[3]) == ("core.min_selected", 4, "core_empty")
    assert "at most 3 cycles" in refused[2]


def test_a_core_of_a_job_that_has_none_is_refused(lab: Lab) -> None:
    def codes(**cycle: Any) -> list[tuple[str, str]]:
        found = lab.refused(core={"kind": "selected", "cycle": cycle})
        return [(param, code) for param, _, _, code in found]

    assert codes(job_id="job_nowhere") == [("core.cycle.job_id", "core_not_found")]
    assert codes(job_id=lab.deleted) == [("core.cycle.job_id", "core_deleted")]
    assert codes(job_id=lab.queued) == [("core.cycle.job_id", "core_not_ready")]
    assert codes(job_id=lab.queued, cycle_index=0) == [("core.cycle.cycle_index", "core_not_ready")]
    assert codes(job_id=lab.source, cycle_index=3) == [("core.cycle.cycle_index", "core_not_found")]
    (refused,) = lab.refused()
    assert (refused[0], refused[3]) == ("core", "missing_field")


def test_a_training_around_nothing_needs_settings_of_its_own(lab: Lab) -> None:
    names = {refused[0] for refused in lab.refused(core={"kind": "none"})}
    assert names == {"model", "data", "activations", "sae"}
    answer = lab.submit(core={"kind": "none", "n_matched": 12}, preset="demo")
    assert answer.json()["config"]["core"] == {"kind": "none", "n_matched": 12, "width_of": None}


def test_a_sweep_of_cores_and_sparsities_is_a_group_that_shares_its_activations(lab: Lab) -> None:
    cores = [lab.core(kind) for kind in ("selected", "energy")]
    answer = lab.submit(sweep={"core": cores, "k": [8, 16]}, name="controls")
    assert answer.status_code == 202, answer.text
    group = answer.json()
    assert answer.headers["Location"] == f"/groups/{group['group_id']}"
    assert lab.api.get(answer.headers["Location"]).json() == group
    points = [(job["point"]["core"]["kind"], job["point"]["k"]) for job in group["jobs"]]
    assert points == [("selected", 8), ("selected", 16), ("energy", 8), ("energy", 16)]
    assert (group["state"], group["match"]) == ("queued", None)
    listed = lab.api.get("/jobs", params={"group_id": group["group_id"]}).json()["items"]
    assert {job["id"] for job in listed} == {job["id"] for job in group["jobs"]}
    with lab.database.session_scope() as session:
        found = session.query(Cycle.cache_key).join(Job, Job.id == Cycle.job_id)
        keys = {row[0] for row in found.filter(Job.group_id == group["group_id"])}
        source = session.query(Cycle.cache_key).filter(Cycle.job_id == lab.source).first()
    assert source is not None
    assert keys == {source[0]}
    dry = lab.api.post("/trainings?dry_run=true", json={"sweep": {"core": cores}}).json()
    assert (dry["n_jobs"], len(dry["jobs"])) == (2, 2)
    misfit = lab.refused(sweep={"core": [cores[0], {"kind": "energy", "cycle": {"job_id": "job_no"}}]})
    assert [(param, code) for param, _, _, code in misfit] == [
        ("sweep.core.1.cycle.job_id", "core_not_found")
    ]
    assert lab.api.get("/groups/group_nowhere").status_code == 404


def test_the_config_of_a_training_is_a_spec_that_the_trainer_reads(lab: Lab) -> None:
    config = lab.submit(core=lab.core("random_directions", seed=4)).json()["config"]
    spec = {"job_id": "job_1", "cycle_index": 0, "config": config}
    read = TypeAdapter(CycleSpec).validate_python(spec)
    assert isinstance(read.config, CoreTrainingConfig)
    assert read.config.core.kind == "random_directions"
