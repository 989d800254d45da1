"""Around a distillation's core: another sparsity, a control without a core, and what two chains both find."""

from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from safetensors.torch import load_file

from tests.e2e.site import Site
from tests.tiny import uncompiled_config


class Done(NamedTuple):
    """Trainings around the last core of a distillation of three cycles."""

    source: str
    core: list[dict[str, Any]]
    around: dict[str, Any]
    control: dict[str, Any]
    files: Path
    """What the training around the core stored."""


def post(site: Site, path: str, **body: Any) -> httpx.Response:
    answer = site.http.post(path, json=body)
    assert answer.status_code == 202, answer.text
    return answer


def succeeded(site: Site, job_id: str) -> None:
    job = site.wait_until_over(job_id, seconds=240)
    assert job["state"] == "succeeded", (job["error"], site.get(f"/jobs/{job_id}/logs"))


@pytest.fixture(scope="module")
def done(site: Site, twins: list[str], tmp_path_factory: pytest.TempPathFactory) -> Done:
    source = twins[0]
    cycle = {"job_id": source}
    around = post(site, "/trainings", core={"kind": "selected", "cycle": cycle}, sae={"k": 3}).json()["id"]
    control = post(site, "/trainings", core={"kind": "none", "width_of": cycle}, sae={"k": 3}).json()["id"]
    for job_id in (around, control):
        succeeded(site, job_id)
    files = site.download(around, tmp_path_factory.mktemp("files"))
    core = site.get(f"/distillations/{source}/core")["items"]
    shown = [site.get(f"/trainings/{job_id}") for job_id in (around, control)]
    return Done(source, core, *shown, files)


def test_a_training_is_built_around_the_very_vectors_at_its_own_sparsity(site: Site, done: Done) -> None:
    files = site.download(done.source, done.files / "source")
    before = load_file(files / "2" / "sae" / "sae_weights.safetensors")["W_enc"]
    after = load_file(done.files / "0" / "sae" / "sae_weights.safetensors")["W_enc"]
    rows = [latent["sae_index"] for latent in done.core]
    assert after[:, : len(rows)].equal(before[:, rows])
    assert done.around["cycles"][0]["metrics"]["l0"] == pytest.approx(3, rel=0.2)
    assert done.around["config"]["data"] == site.get(f"/jobs/{done.source}")["config"]["data"]


def test_the_control_is_as_wide_and_has_no_core(done: Done) -> None:
    around, control = (job["cycles"][0]["metrics"] for job in (done.around, done.control))
    assert control["prefix_widths"] == around["prefix_widths"]
    assert control["retention"] is None
    assert around["retention"] is not None
    assert (done.control["given"], done.control["config"]["core"]["n_matched"]) == (None, len(done.core))


def test_what_a_training_keeps_is_who_it_was_in_the_distillation(site: Site, done: Done) -> None:
    given = done.around["given"]
    assert (given["kind"], given["n_latents"], given["overlap"]) == ("selected", len(done.core), 1.0)
    known = {latent["latent_id"]: latent for latent in done.core}
    latents = site.get(f"/trainings/{done.around['id']}/core")["items"]
    kept = [latent for latent in latents if latent["parent_core_index"] is not None]
    for latent in kept:
        source = known[latent["latent_id"]]
        assert source["core_index"] == latent["parent_core_index"]
        assert latent["times_selected"] == source["times_selected"] + 1
    lineage = site.get(f"/trainings/{done.around['id']}/lineage", limit=200)["items"]
    assert {row["latent_id"] for row in lineage if row["given"]} == set(known)
    told = site.get(f"/distillations/{done.source}/lineage", limit=200)["items"]
    assert {row["last_cycle"] for row in told} <= {0, 1, 2}
    assert max(row["times_selected"] for row in told) <= 3


def test_a_job_that_trainings_refer_to_may_be_asked_for_its_core_as_before(site: Site, done: Done) -> None:
    assert site.get(f"/distillations/{done.source}/core")["items"] == done.core


def test_two_chains_are_matched_once_both_have_ended(site: Site) -> None:
    answer = post(site, "/distillations", **uncompiled_config(site.model, n_cycles=1, chains=2))
    group = answer.json()
    assert answer.headers["Location"] == f"/groups/{group['group_id']}"
    ids = [job["id"] for job in group["jobs"]]
    for job_id in ids:
        succeeded(site, job_id)
    (match_id,) = [job["id"] for job in site.get(answer.headers["Location"])["jobs"] if job["id"] not in ids]
    succeeded(site, match_id)
    group = site.get(answer.headers["Location"])
    match = group["match"]
    assert (group["state"], match["job_id"]) == ("succeeded", match_id)
    assert match["cores"] == [f"{job_id}.0" for job_id in ids]
    for job_id, reproduced, n_latents in zip(ids, match["reproduced"], match["n_latents"], strict=True):
        latents = {latent["latent_id"] for latent in site.get(f"/distillations/{job_id}/core")["items"]}
        assert n_latents == len(latents)
        assert set(reproduced) <= latents
    found = [len(reproduced) for reproduced in match["reproduced"]]
    shares = [n / m for n, m in zip(found, match["n_latents"], strict=True)]
    assert match["share_reproduced"] == pytest.approx(shares)
    assert match["pairs"][0]["n_matches"] == found[0] == found[1]
