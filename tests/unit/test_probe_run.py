"""Whole probes of a tiny model's core, by the trainer: what is asked, against what its cycle stored."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dmsae.config import CycleSpec
from dmsae.cycle import read_spec
from dmsae.cycle_inputs import Places
from dmsae.cycle_steps import run_cycle
from dmsae.errors import CycleFailed
from dmsae.formats import load_core, load_sae
from dmsae.probe_config import ProbeSpec
from dmsae.probe_run import run_probe
from dmsae.service.results import read_probe
from tests.recorder import Recorder
from tests.tiny import save_tiny_model, tiny_config, tiny_spec, write_spec

SMALL = {
    "training": {"n_tokens": 4096, "batch_tokens": 256, "lr": 3e-3, "threshold_tokens": 1024},
    "attribution": {"n_tokens": 500, "ablation_tokens": 50, "ablation_latents": 1},
    "evaluation": {"n_tokens": 500},
}
SHARED = ("seed", "n_threads", "model", "data", "activations", "evaluation")
JOBS = ("dst_a", "dst_b")
TEXT = "The import statement binds names, and the with statement leaves them."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def lab(model, tmp_path_factory):
    """Two jobs of one cycle, each where a probe finds it; the folder also holds their cache."""
    folder = tmp_path_factory.mktemp("lab")
    for seed, job_id in enumerate(JOBS):
        spec = CycleSpec.model_validate(tiny_spec(model, job_id=job_id, seed=seed, **SMALL))
        run_cycle(spec, folder / f"{job_id}.0", places=Places(folder / "cache"), report=Recorder())
    return folder


def probe_spec(model, kind, **settings):
    config = tiny_config(model, **SMALL)
    shared = {name: config[name] for name in SHARED}
    asked = {"kind": kind, "core": {"job": "dst_a", "cycle": 0}, **settings}
    return {"spec_version": 5, "job_id": "job_probe", "config": {**shared, **asked}}


def probe(model, lab, out, kind, *, inputs=None, roots=None, **settings):
    spec = ProbeSpec.model_validate(probe_spec(model, kind, **settings))
    places = Places(lab / "cache", sources_dir=lab, inputs_dir=inputs, allowed_roots=roots)
    report = Recorder()
    run_probe(spec, out, places=places, report=report)
    assert read_spec(out / "spec.json") == spec
    return json.loads((out / "probe.json").read_text()), report


def stored(lab, job_id="dst_a"):
    folder = lab / f"{job_id}.0"
    return load_core(folder / "core"), json.loads((folder / "lineage.json").read_text())["core"]


def test_a_prompts_activations_are_those_of_the_stored_sae_in_the_models_own_units(model, lab, tmp_path):
    found, report = probe(model, lab, tmp_path / "out", "prompt", prompt=TEXT, n_latents=32)
    core, places = stored(lab)
    sae, facts = load_sae(lab / "dst_a.0" / "sae")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(TEXT, add_special_tokens=False, return_tensors="pt")["input_ids"]
    plain = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        x = plain(input_ids=ids, output_hidden_states=True).hidden_states[2][0]
    acts = facts["rms"] * sae.encode(x / facts["rms"])
    assert [token["token_id"] for token in found["tokens"]] == ids[0].tolist()
    assert "".join(token["token"] for token in found["tokens"]) == TEXT
    limit = 10 * core.median_norm
    assert [token["is_counted"] for token in found["tokens"]] == (x.norm(dim=1) <= limit).tolist()
    assert found["latents"]
    for latent in found["latents"]:
        row = places[latent["core_index"]]["sae_index"]
        assert latent["latent_id"] == places[latent["core_index"]]["latent_id"]
        assert latent["activations"] == pytest.approx(acts[:, row].tolist(), rel=1e-3, abs=1e-4)
        assert latent["max_activation"] == pytest.approx(acts[:, row].max().item(), rel=1e-3)
    peaks = [latent["max_activation"] for latent in found["latents"]]
    assert peaks == sorted(peaks, reverse=True)
    assert len(peaks) == (acts[:, [place["sae_index"] for place in places]].amax(dim=0) > 0).sum()
    assert (found["change"], found["changed"], found["kl"]) == (None, None, None)
    assert report.phases == ["loading", "evaluating"]
    assert set(report.events) == {"model_loaded", "hook_resolved"}


def test_reading_the_cycles_own_evaluation_text_gives_the_densities_that_it_recorded(model, lab):
    from dmsae.activations import Harvester, Scale, norm_limit
    from dmsae.config import DistillationConfig
    from dmsae.cycle_text import open_text, read_text
    from dmsae.hooks import resolve_hook
    from dmsae.models import load_model
    from dmsae.prompting import PromptReader
    from dmsae.splicing import take_kept

    config = DistillationConfig.model_validate(tiny_config(model, **SMALL))
    core, places = stored(lab)
    loaded = load_model(config.model, activations=config.activations, device="cpu", cache_dir=lab / "cache")
    hook = resolve_hook(loaded, layer=1, hook="resid_post")
    scale = Scale(rms=core.rms, median_norm=core.median_norm)
    max_norm = norm_limit(scale, config.activations)
    reader = PromptReader(loaded, hook, core, max_norm)
    text = open_text(config.data, inputs_dir=None, allowed_roots=None, cache_dir=lab / "cache")
    harvester = Harvester(loaded, hook, config.activations)
    tokens = read_text(text, harvester, config, margin=1 / 8, cache_dir=lab / "cache")
    batches = list(
        take_kept(harvester.harvest(tokens.parts["attribution"], max_norm=max_norm, part="attribution"), 500)
    )
    firing, n_kept = torch.zeros(core.n_core), 0
    for batch in batches:
        for row in range(len(batch.input_ids)):
            n_tokens = int(batch.is_token[row].sum())
            ids = batch.input_ids[row : row + 1, :n_tokens]
            x = reader.activations(ids)
            counted = reader.is_counted(ids, x)[0] & batch.is_kept[row, :n_tokens]
            firing += (reader.latent_acts(x)[0, counted] > 0).sum(dim=0)
            n_kept += int(counted.sum())
    assert n_kept == 500
    assert (firing / n_kept).tolist() == pytest.approx([place["density"] for place in places], abs=2.5e-3)


def test_a_change_is_said_beside_what_the_model_says_plainly(model, lab, tmp_path):
    core, _ = stored(lab)
    strongest, _ = probe(model, lab, tmp_path / "plain", "prompt", prompt=TEXT)
    latent_id = strongest["latents"][0]["latent_id"]
    asked = {"prompt": TEXT, "latent": latent_id, "n_top": 3, "n_new_tokens": 4}
    said = {}
    for name, change in (("ablated", {"kind": "ablate"}), ("steered", {"kind": "steer", "strength": 25.0})):
        found, _ = probe(model, lab, tmp_path / name, "prompt", **asked, change=change)
        assert found["change"] == change
        assert found["kl"] > 0
        assert [latent["latent_id"] for latent in found["latents"]] == [latent_id]
        assert [token["token_id"] for token in found["plain"]["continuation"]] == [
            token["token_id"] for token in strongest["plain"]["continuation"][:4]
        ]
        for each in (found["plain"], found["changed"]):
            chances = [token["probability"] for token in each["next"]]
            assert len(chances) == 3
            assert chances == sorted(chances, reverse=True)
            assert each["continuation"][0]["token_id"] == each["next"][0]["token_id"]
        said[name] = found
    assert said["ablated"]["plain"] == said["steered"]["plain"]
    assert said["ablated"]["changed"] != said["steered"]["changed"]
    assert said["ablated"]["rms"] == pytest.approx(core.rms, rel=1e-5)


def test_a_logit_lens_is_of_the_latents_asked_for_in_their_order(model, lab, tmp_path):
    core, _ = stored(lab)
    every, _ = probe(model, lab, tmp_path / "all", "logit_lens", n_top=4)
    assert [latent["core_index"] for latent in every["latents"]] == list(range(core.n_core))
    assert every["n_core"] == core.n_core
    names = [core.latents[row].latent_id for row in (2, 0)]
    some, _ = probe(model, lab, tmp_path / "some", "logit_lens", n_top=4, latents=names)
    assert [latent["latent_id"] for latent in some["latents"]] == names
    assert some["latents"] == [every["latents"][2], every["latents"][0]]
    for latent in every["latents"]:
        promoted, suppressed = ([t["value"] for t in latent[end]] for end in ("promoted", "suppressed"))
        assert promoted == sorted(promoted, reverse=True)
        assert suppressed == sorted(suppressed)
        assert len(promoted) == len(suppressed) == 4
        assert promoted[-1] > suppressed[-1]


def test_a_core_matched_with_its_own_stored_folder_finds_every_latent_in_its_place(model, lab, tmp_path):
    """The folder is at raw scale and knows no identities: rows, cosines and correlations say who is who."""
    folder = {"kind": "folder", "path": str(lab / "dst_a.0" / "sae")}
    found, report = probe(model, lab, tmp_path / "out", "match", other=folder, roots=[lab])
    core, places = stored(lab)
    assert found["n_matches"] == found["n_latents"] == core.n_core
    assert found["n_latents_other"] == 64
    rows = {each["core_index"]: each["other_index"] for each in found["matches"]}
    assert rows == {index: place["sae_index"] for index, place in enumerate(places)}
    for each in found["matches"]:
        assert each["decoder_cosine"] == pytest.approx(1, abs=1e-6)
        assert each["firing_correlation"] == pytest.approx(1, abs=1e-3)
        assert each["other_latent_id"] is None
    assert (found["best_cosine"], found["share_matched"]) == (pytest.approx(1, abs=1e-6), 1)
    assert 0 < found["best_cosine_random"] < 0.9
    assert (found["n_tokens"], found["firing_trouble"]) == (500, None)
    assert found["other_says"]["architecture"] == "jumprelu"
    assert report.phases == ["loading", "evaluating", "harvesting"]


def test_a_core_matched_with_its_sae_as_gemma_scope_would_publish_it_finds_the_same(model, lab, tmp_path):
    """Without the decoder's bias in the encoder the same SAE has another bias there."""
    W_enc, W_dec, b_enc, b_dec, threshold = (
        load_file(lab / "dst_a.0" / "sae" / "sae_weights.safetensors")[name]
        for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    )
    arrays = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc - b_dec @ W_enc, "b_dec": b_dec}
    np.savez(
        tmp_path / "params.npz", threshold=threshold.numpy(), **{n: a.numpy() for n, a in arrays.items()}
    )
    other = {"kind": "folder", "path": str(tmp_path / "params.npz")}
    found, _ = probe(model, lab, tmp_path / "out", "match", other=other, roots=[lab, tmp_path])
    _, places = stored(lab)
    assert {each["core_index"]: each["other_index"] for each in found["matches"]} == {
        index: place["sae_index"] for index, place in enumerate(places)
    }
    for each in found["matches"]:
        assert each["decoder_cosine"] == pytest.approx(1, abs=1e-6)
        assert each["firing_correlation"] == pytest.approx(1, abs=1e-3)


def test_two_jobs_cores_are_matched_by_decoder_one_to_one_with_their_correlation(model, lab, tmp_path):
    other = {"kind": "cycle", "job": "dst_b", "cycle": 0}
    found, _ = probe(model, lab, tmp_path / "out", "match", other=other, decoder_cosine=0.3)
    (a, _), (b, _) = stored(lab, "dst_a"), stored(lab, "dst_b")
    assert found["matches"]
    assert found["n_latents_other"] == b.n_core
    for each in found["matches"]:
        row, other_row = each["core_index"], each["other_index"]
        assert each["other_latent_id"] == b.latents[other_row].latent_id
        assert each["decoder_cosine"] == pytest.approx((a.W_dec[row] @ b.W_dec[other_row]).item(), abs=1e-5)
        assert not each["is_same_latent"]
    cosines = [each["decoder_cosine"] for each in found["matches"]]
    assert cosines == sorted(cosines, reverse=True)
    assert min(cosines) >= 0.3
    assert len({each["other_index"] for each in found["matches"]}) == len(cosines)


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        ({"architecture": "topk"}, "topk"),
        ({"normalize_activations": "layer_norm"}, "layer_norm"),
    ],
)
def test_where_firing_cannot_be_had_the_decoders_are_compared_and_it_is_said_why(
    model, lab, tmp_path, change, trouble
):
    folder = tmp_path / "sae"
    folder.mkdir()
    facts = json.loads((lab / "dst_a.0" / "sae" / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**facts, **change}))
    tensors = load_file(lab / "dst_a.0" / "sae" / "sae_weights.safetensors")
    save_file({"W_dec": tensors["W_dec"].half()}, folder / "sae_weights.safetensors")
    other = {"kind": "folder", "path": str(folder)}
    found, _ = probe(model, lab, tmp_path / "out", "match", other=other)
    assert found["n_matches"] == found["n_latents"]
    assert trouble in found["firing_trouble"]
    assert (found["n_tokens"], found["matches"][0]["firing_correlation"]) == (0, None)


@pytest.mark.parametrize(
    ("name", "content", "failure"),
    [
        ("cfg.json", b"[]", "data_unreadable"),
        ("cfg.json", None, "data_unreadable"),
        ("sae_weights.safetensors", b"torn", "data_unreadable"),
        ("sae_weights.safetensors", "narrow", "core_mismatch"),
    ],
)
def test_a_folder_that_is_no_sae_of_these_activations_is_refused(
    model, lab, tmp_path, name, content, failure
):
    folder = tmp_path / "sae"
    folder.mkdir()
    for file in ("cfg.json", "sae_weights.safetensors"):
        (folder / file).write_bytes((lab / "dst_a.0" / "sae" / file).read_bytes())
    (folder / name).unlink()
    if content == "narrow":
        made = {"W_enc": torch.ones(8, 3), "W_dec": torch.ones(3, 8), "b_enc": torch.ones(3)}
        save_file({**made, "b_dec": torch.ones(8), "threshold": torch.ones(3)}, folder / name)
    elif content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(CycleFailed) as caught:
        probe(model, lab, tmp_path / "out", "match", other={"kind": "folder", "path": str(folder)})
    assert caught.value.failure == failure
    assert caught.value.param in ("other", "other.path")
    assert caught.value.message.startswith("other")
    assert not (tmp_path / "out").exists()


def test_a_folder_outside_the_allowed_roots_is_not_read_though_a_link_leads_there(model, lab, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "sae").symlink_to(lab / "dst_a.0" / "sae")
    other = {"kind": "folder", "path": str(tmp_path / "root" / "sae")}
    with pytest.raises(CycleFailed) as caught:
        probe(model, lab, tmp_path / "out", "match", other=other, roots=[tmp_path / "root"])
    assert (caught.value.failure, caught.value.param) == ("data_unreadable", "other.path")
    assert "allowed root" in caught.value.message


def test_a_core_of_another_layer_and_a_latent_of_another_core_are_refused(model, lab, tmp_path):
    with pytest.raises(CycleFailed) as caught:
        probe(model, lab, tmp_path / "out", "prompt", prompt=TEXT, activations={"layer": 2})
    assert (caught.value.failure, caught.value.param) == ("core_mismatch", "core")
    assert "model.layers.2" in caught.value.message
    with pytest.raises(CycleFailed) as unknown:
        probe(model, lab, tmp_path / "out", "logit_lens", latents=["dst_b.0.1"])
    assert (unknown.value.failure, unknown.value.param) == ("core_mismatch", "latents.0")


def test_the_trainer_runs_a_probe_as_it_runs_a_cycle(model, lab, tmp_path):
    spec = write_spec(tmp_path / "spec.json", probe_spec(model, "prompt", prompt=TEXT))
    command = [sys.executable, "-m", "dmsae.cycle", str(spec), str(tmp_path / "out")]
    command += ["--sources", str(lab), "--cache", str(lab / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert lines[-1] == {"type": "done"}
    result = read_probe(tmp_path / "out")
    assert result.probe.kind == "prompt"
    assert result.probe.shown()["tokens"]
    assert result.metrics["hook_path"] == "model.layers.1"
