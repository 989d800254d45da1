"""Probes over a real worker: two jobs of the same bits, asked over HTTP, by the client and in a shell."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from dmsae import cli
from dmsae.client.client import Client
from tests.e2e.site import Site

TEXT = "The import statement binds names, and the with statement leaves them."


@pytest.fixture(scope="module")
def url(site: Site) -> str:
    return str(site.http.base_url)


def core_of(site: Site, job_id: str) -> list[dict[str, Any]]:
    latents: list[dict[str, Any]] = site.get(f"/distillations/{job_id}/core")["items"]
    return latents


def ask(site: Site, **body: Any) -> Any:
    answer = site.http.post("/probes", json=body)
    assert answer.status_code == 202, answer.text
    site.wait_until_over(answer.json()["id"])
    return site.get(answer.headers["Location"])


def test_a_prompt_says_where_latents_fire_and_what_one_of_them_does(
    site: Site, twins: list[str], url: str
) -> None:
    with Client(url) as client:
        asked = {"kind": "prompt", "core": {"job": twins[0]}, "prompt": TEXT, "n_new_tokens": 5}
        plain = client.probes.wait(client.probes.create(asked)["id"], timeout_s=120)
        assert plain["state"] == "succeeded", (plain["error"], client.jobs.logs(plain["id"]))
        strongest = plain["result"]["latents"][0]["latent_id"]
        asked |= {"latent": strongest, "change": {"kind": "ablate"}}
        ablated = client.probes.wait(client.probes.create(asked)["id"], timeout_s=120)
    assert "".join(token["token"] for token in plain["result"]["tokens"]) == TEXT
    assert strongest in {latent["latent_id"] for latent in core_of(site, twins[0])}
    assert ablated["result"]["plain"] == plain["result"]["plain"]
    assert ablated["result"]["latents"] == plain["result"]["latents"][:1]
    assert ablated["result"]["kl"] > 0
    assert ablated["in_use"]["hook"] == "resid_post"
    stored = {file["name"] for file in site.get(f"/jobs/{ablated['id']}/artifacts")["items"]}
    assert stored == {"spec.json", "probe.json", "metrics.json", "manifest.json"}


def test_twins_match_latent_by_latent_and_their_stories_say_so(site: Site, twins: list[str]) -> None:
    other = {"kind": "cycle", "job": twins[1]}
    probe = ask(site, kind="match", core={"job": twins[0]}, other=other, n_tokens=500)
    assert probe["state"] == "succeeded", (probe["error"], site.get(f"/jobs/{probe['id']}/logs"))
    result, cores = probe["result"], [core_of(site, job_id) for job_id in twins]
    assert result["n_matches"] == result["n_latents"] == len(cores[0])
    assert result["best_cosine_random"] < 0.9
    for match in result["matches"]:
        own, its = cores[0][match["core_index"]], cores[1][match["other_index"]]
        assert (match["latent_id"], match["other_latent_id"]) == (own["latent_id"], its["latent_id"])
        assert own["sae_index"] == its["sae_index"]
        assert match["decoder_cosine"] == pytest.approx(1)
        assert match["firing_correlation"] in (None, pytest.approx(1))
    assert any(match["firing_correlation"] is not None for match in result["matches"])
    found = site.get(f"/latents/{result['matches'][0]['latent_id']}")["matches"]
    assert [(told["latent_id"], told["match_job_id"]) for told in found] == [
        (result["matches"][0]["other_latent_id"], probe["id"])
    ]
    assert found[0]["best_cosine_random"] == pytest.approx(result["best_cosine_random"])


def match_in_shell(url: str, job_id: str, place: Path) -> dict[str, Any]:
    arguments = ["probe", "match", job_id, "--folder", str(place), "--tokens", "300", "--json"]
    done = CliRunner().invoke(cli.app, [*arguments, "--url", url])
    assert done.exit_code == 0, done.output
    result: dict[str, Any] = json.loads(done.stdout)["result"]
    return result


def test_an_uploaded_folder_is_matched_from_the_shell_and_a_file_of_arrays_too(
    site: Site, twins: list[str], url: str, tmp_path: Path
) -> None:
    folder = site.download(twins[0], tmp_path) / "2" / "sae"
    arrays = load_file(folder / "sae_weights.safetensors")
    arrays["b_enc"] -= arrays["b_dec"] @ arrays["W_enc"]  # such a file's encoder subtracts no decoder bias
    np.savez(tmp_path / "params.npz", **arrays)
    rows = {latent["core_index"]: latent["sae_index"] for latent in core_of(site, twins[0])}
    for place in (folder, tmp_path / "params.npz"):
        result = match_in_shell(url, twins[0], place)
        assert {match["core_index"]: match["other_index"] for match in result["matches"]} == rows
        assert result["n_tokens"] == 300
        correlations = [match["firing_correlation"] for match in result["matches"]]
        assert [found for found in correlations if found is not None] == pytest.approx(
            [1] * sum(found is not None for found in correlations), abs=1e-3
        )


def test_a_logit_lens_of_a_published_core_is_shown_in_the_shell_and_a_prompt_too_long_is_refused_there(
    site: Site, twins: list[str], url: str
) -> None:
    core = site.get(f"/distillations/{twins[0]}/core")
    latent = core["items"][0]["latent_id"]
    named = site.http.post(f"/cores/{core['core_id']}/publish", json={"name": "lab/twin"}).json()
    shown = CliRunner().invoke(
        cli.app,
        ["probe", "logit-lens", named["published_as"], "--latent", latent, "--json", "--url", url],
    )
    assert shown.exit_code == 0, shown.output
    (lens,) = json.loads(shown.stdout)["result"]["latents"]
    assert (lens["latent_id"], len(lens["promoted"]), len(lens["suppressed"])) == (latent, 10, 10)
    long = CliRunner().invoke(cli.app, ["probe", "prompt", twins[0], " a" * 400, "--url", url])
    assert long.exit_code == 4
    assert "tokens" in long.output
    assert "at most 256" in long.output
