"""A whole match: two chains of a tiny model, and the cores that they end with, compared by the trainer."""

import json
import subprocess
import sys

import pytest

from dmsae.config import CycleSpec, MatchSpec
from dmsae.cycle import read_spec
from dmsae.cycle_inputs import Places
from dmsae.cycle_steps import run_cycle
from dmsae.errors import CycleFailed
from dmsae.formats import load_core
from dmsae.match_run import run_match
from dmsae.service.results import read_result
from tests.recorder import Recorder
from tests.tiny import save_tiny_model, tiny_spec, write_spec

SMALL = {
    "training": {"n_tokens": 4096, "batch_tokens": 256, "lr": 3e-3, "threshold_tokens": 1024},
    "attribution": {"n_tokens": 500, "ablation_tokens": 50, "ablation_latents": 1},
    "evaluation": {"n_tokens": 500},
}
CHAINS = ("dst_a", "dst_b")
SHARED = ("seed", "n_threads", "model", "data", "activations", "evaluation")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def chain_spec(model, index, **settings):
    return tiny_spec(
        model, job_id=CHAINS[index], seed=index, chains=2, chain_index=index, **SMALL, **settings
    )


@pytest.fixture(scope="module")
def chains(model, tmp_path_factory):
    """Two chains of one cycle, each where a match finds it; the folder also holds their cache."""
    folder = tmp_path_factory.mktemp("chains")
    for index in range(2):
        spec = CycleSpec.model_validate(chain_spec(model, index))
        run_cycle(spec, folder / f"{CHAINS[index]}.0", places=Places(folder / "cache"), report=Recorder())
    return folder


def match_spec(model, cores=CHAINS, **settings):
    config = tiny_spec(model, **SMALL)["config"]
    refs = [{"job_id": job_id, "cycle_index": 0} for job_id in cores]
    shared = {name: config[name] for name in SHARED}
    return {"spec_version": 3, "job_id": "prb_1", "config": {**shared, "cores": refs, **settings}}


def match(spec, chains, out):
    report = Recorder()
    places = Places(chains / "cache", sources_dir=chains)
    run_match(MatchSpec.model_validate(spec), out, places=places, report=report)
    return report


def read(file):
    return json.loads(file.read_text())


def test_chains_train_on_documents_of_their_own_and_share_all_others(chains):
    metrics = [read(chains / f"{name}.0" / "metrics.json") for name in CHAINS]
    assert metrics[0]["rms"] != metrics[1]["rms"]
    assert metrics[0]["ce_clean"] == metrics[1]["ce_clean"]
    assert metrics[1]["n_tokens_cached"] == 0
    kept = {folder.name for folder in (chains / "cache" / "activations").iterdir() if folder.is_dir()}
    assert len(kept) == 2 + 2, "windows of each, attribution and evaluation of both"


def test_a_chain_that_is_too_short_says_whose_documents_it_counted(model, tmp_path):
    spec = chain_spec(model, 1)
    spec["config"]["training"]["n_tokens"] = 10**9
    with pytest.raises(CycleFailed) as caught:
        run_cycle(
            CycleSpec.model_validate(spec), tmp_path / "out", places=Places(tmp_path), report=Recorder()
        )
    assert caught.value.failure == "dataset_exhausted"
    assert "chain_index = 1, chains = 2" in caught.value.message
    whole = tiny_spec(model, **{**SMALL, "training": {**SMALL["training"], "n_tokens": 10**9}})
    with pytest.raises(CycleFailed) as all_of_it:
        run_cycle(CycleSpec.model_validate(whole), tmp_path / "x", places=Places(tmp_path), report=Recorder())
    seen = [int(error.value.message.split("Seen: ")[1].split()[0]) for error in (caught, all_of_it)]
    assert seen[0] < seen[1]


def test_a_match_names_what_both_chains_found_and_what_chance_gives(model, chains, tmp_path):
    report = match(match_spec(model, decoder_cosine=0.3, firing_correlation=0.1), chains, tmp_path / "out")
    assert report.phases == ["loading", "harvesting", "evaluating"]
    found, metrics = (read(tmp_path / "out" / name) for name in ("match.json", "metrics.json"))
    cores = [load_core(chains / f"{name}.0" / "core") for name in CHAINS]
    assert found["cores"] == ["dst_a.0", "dst_b.0"]
    assert found["n_latents"] == [core.n_core for core in cores]
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"]) == (0, 1)
    assert pair["matches"]
    for each in pair["matches"]:
        a, b = each["a_index"], each["b_index"]
        assert each["a_latent_id"] == cores[0].latents[a].latent_id
        assert each["b_latent_id"] == cores[1].latents[b].latent_id
        assert each["decoder_cosine"] == pytest.approx(
            (cores[0].W_dec[a] @ cores[1].W_dec[b]).item(), abs=1e-5
        )
        assert each["firing_correlation"] >= 0.1
    for side, name in enumerate(("a", "b")):
        ids = {each[f"{name}_latent_id"] for each in pair["matches"]}
        assert set(found["reproduced"][side]) == ids
        assert found["share_reproduced"][side] == len(ids) / cores[side].n_core
    assert metrics["n_matches"] == len(pair["matches"])
    assert metrics["n_tokens_evaluated"] == 500
    assert 0 < metrics["best_cosine_random"] < 1
    assert read_spec(tmp_path / "out" / "spec.json") == MatchSpec.model_validate(
        match_spec(model, decoder_cosine=0.3, firing_correlation=0.1)
    )


def test_the_same_match_gives_the_same_bytes_and_reads_what_the_chains_kept(
    model, chains, tmp_path, monkeypatch
):
    match(match_spec(model), chains, tmp_path / "one")
    monkeypatch.setattr("dmsae.activations.run_lower", None)
    match(match_spec(model), chains, tmp_path / "two")
    assert (tmp_path / "one" / "match.json").read_bytes() == (tmp_path / "two" / "match.json").read_bytes()


def test_cores_of_other_activations_are_not_compared(model, chains, tmp_path):
    spec = match_spec(model, activations={"layer": 2})
    with pytest.raises(CycleFailed) as caught:
        match(spec, chains, tmp_path / "out")
    assert caught.value.failure == "core_mismatch"
    assert "model.layers.1" in caught.value.message
    assert "model.layers.2" in caught.value.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("cores", "param"), [(("dst_a", "dst_a"), "cores.1"), (("dst_a", "dst_gone"), "cores.1")]
)
def test_a_core_that_is_missing_or_named_twice_is_refused_by_place(model, chains, tmp_path, cores, param):
    with pytest.raises(CycleFailed) as caught:
        match(match_spec(model, cores), chains, tmp_path / "out")
    assert (caught.value.failure, caught.value.param) == ("core_mismatch", param)
    assert cores[1] in caught.value.message


def test_the_trainer_tells_a_match_from_a_cycle_and_speaks_the_same_protocol(model, chains, tmp_path):
    spec = write_spec(tmp_path / "spec.json", match_spec(model))
    command = [sys.executable, "-m", "dmsae.cycle", str(spec), str(tmp_path / "out")]
    command += ["--sources", str(chains), "--cache", str(chains / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert [line["phase"] for line in lines if line["type"] == "phase"] == [
        "loading",
        "harvesting",
        "evaluating",
    ]
    assert lines[-1] == {"type": "done"}
    assert read_result(tmp_path / "out", is_match=True).match.cores == ["dst_a.0", "dst_b.0"]
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files == ["match.json", "metrics.json", "spec.json"]
