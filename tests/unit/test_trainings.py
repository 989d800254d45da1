"""Whole trainings of a tiny model: one cycle around each kind of core that a finished cycle gives."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dmsae.checkpoints import Checkpoints, fingerprint_of
from dmsae.config import CycleSpec
from dmsae.cycle_inputs import Places
from dmsae.cycle_steps import run_cycle
from dmsae.errors import CycleFailed
from dmsae.formats import load_core
from dmsae.service.results import read_result
from tests.recorder import Recorder
from tests.tiny import save_tiny_model, tiny_spec

SMALL = {
    "training": {"n_tokens": 4096, "batch_tokens": 256, "lr": 3e-3, "threshold_tokens": 1024},
    "attribution": {"n_tokens": 500, "ablation_tokens": 50, "ablation_latents": 1},
    "evaluation": {"n_tokens": 500},
}
SOURCE = {"job_id": "dst_source", "cycle_index": 1}
CONTROLS = ("random_directions", "random_latents", "frequent", "energy")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def sources(model, tmp_path_factory):
    """Two cycles of a distillation, each in the folder that a trainer finds it in."""
    folder = tmp_path_factory.mktemp("sources")
    for index in range(2):
        spec = tiny_spec(model, job_id="dst_source", cycle_index=index, **SMALL)
        core_dir = folder / "dst_source.0" / "core" if index else None
        run(spec, folder / f"dst_source.{index}", core_dir=core_dir)
    return folder


def run(spec, out, **places):
    report = Recorder()
    cache = f"{spec['config']['model']['path']}-cache"  # one harvest for all
    run_cycle(CycleSpec.model_validate(spec), out, places=Places(Path(cache), **places), report=report)
    return report


def training(model, core, *, job_id="trn_1", **settings):
    """Give the spec of a training; `core` is what it names, its cycle filled in."""
    named = core if core["kind"] == "none" else {"cycle": SOURCE, **core}
    spec = tiny_spec(model, job_id=job_id, **{**SMALL, **settings})
    del spec["config"]["n_cycles"]
    return {**spec, "spec_version": 3, "config": {**spec["config"], "core": named}}


def refusal(spec, folder, **places):
    with pytest.raises(CycleFailed) as caught:
        run(spec, folder / "out", **places)
    assert not (folder / "out").exists()
    return caught.value


def read(file):
    return json.loads(file.read_text())


def weights(out):
    return load_file(out / "sae" / "sae_weights.safetensors")


@pytest.fixture(scope="module")
def trained(model, sources, tmp_path_factory):
    """A training around each kind of core, with what it reported."""
    folder = tmp_path_factory.mktemp("trained")
    kinds = [{"kind": "selected"}, {"kind": "filtered", "min_selected": 2}, *({"kind": c} for c in CONTROLS)]
    done = {}
    for core in kinds:
        out = folder / core["kind"]
        done[core["kind"]] = out, run(training(model, core), out, sources_dir=sources)
    return done


@pytest.mark.parametrize("kind", ["selected", "filtered", *CONTROLS])
def test_a_training_is_built_around_the_core_given_bit_for_bit_and_records_it(trained, sources, kind):
    out, _ = trained[kind]
    given, lineage = load_core(out / "given"), read(out / "lineage.json")
    assert torch.equal(weights(out)["W_enc"][:, : given.n_core], given.W_enc)
    told = lineage["given"]
    assert told["kind"] == kind
    assert [entry["latent_id"] for entry in told["core"]] == [each.latent_id for each in given.latents]
    assert told["core"][0]["encoder_norm"] == pytest.approx(given.W_enc[:, 0].norm().item(), rel=1e-6)
    source = load_core(sources / "dst_source.1" / "core")
    assert (given.rms, given.median_norm, given.provenance) == (
        source.rms,
        source.median_norm,
        source.provenance,
    )
    assert read(out / "metrics.json")["given_overlap"] == told["overlap"]


@pytest.mark.parametrize("kind", ["selected", "filtered", *CONTROLS])
def test_what_a_training_selects_has_its_parents_in_the_core_given(trained, kind):
    lineage = read(trained[kind][0] / "lineage.json")
    given = {entry["core_index"]: entry["latent_id"] for entry in lineage["given"]["core"]}
    kept = {
        e["parent_core_index"]: e["latent_id"] for e in lineage["core"] if e["parent_core_index"] is not None
    }
    dropped = {entry["core_index"]: entry["latent_id"] for entry in lineage["dropped"]}
    assert kept | dropped == given
    assert lineage["retention"] == len(kept) / len(given)
    new = [entry for entry in lineage["core"] if entry["parent_core_index"] is None]
    assert all(entry["latent_id"] == f"trn_1.0.{entry['sae_index']}" for entry in new)


@pytest.mark.parametrize("kind", ["selected", "filtered", *CONTROLS])
def test_kept_latents_are_compared_with_the_referenced_sae_where_they_have_a_row_there(trained, kind):
    lineage = read(trained[kind][0] / "lineage.json")
    kept = [entry for entry in lineage["core"] if entry["parent_core_index"] is not None]
    if kind == "random_directions":
        assert all(entry["decoder_cosine"] is entry["firing_jaccard"] is None for entry in kept)
    else:
        assert kept
        assert all(entry["decoder_cosine"] is not None for entry in kept)


def test_two_trainings_around_a_drawn_core_have_the_same_bits(model, sources, trained, tmp_path):
    for kind in ("random_directions", "random_latents"):
        out = tmp_path / kind
        run(training(model, {"kind": kind}), out, sources_dir=sources)
        for name in ("sae/sae_weights.safetensors", "given/core.safetensors", "lineage.json"):
            assert (out / name).read_bytes() == (trained[kind][0] / name).read_bytes(), name


def test_the_selected_core_at_the_same_k_starts_as_the_next_cycle_would(model, sources, trained, tmp_path):
    spec = tiny_spec(model, job_id="dst_source", cycle_index=2, **SMALL)
    run(spec, tmp_path / "next", core_dir=sources / "dst_source.1" / "core")
    ours = load_core(trained["selected"][0] / "given")
    theirs = load_core(sources / "dst_source.1" / "core")
    assert torch.equal(ours.W_enc, theirs.W_enc)
    assert ours.latents == theirs.latents
    mine, other = (read(out / "metrics.json") for out in (trained["selected"][0], tmp_path / "next"))
    assert mine["prefix_widths"] == other["prefix_widths"]
    assert mine["rms"] == other["rms"]


def test_an_sae_without_a_core_is_as_wide_as_one_around_it_where_that_is_asked_for(
    model, sources, trained, tmp_path
):
    n_core = load_core(sources / "dst_source.1" / "core").n_core
    run(training(model, {"kind": "none", "n_matched": n_core}), tmp_path / "wide")
    run(training(model, {"kind": "none"}), tmp_path / "plain")
    around = read(trained["selected"][0] / "metrics.json")["prefix_widths"]
    assert read(tmp_path / "wide" / "metrics.json")["prefix_widths"] == around
    assert read(tmp_path / "plain" / "metrics.json")["prefix_widths"] == [12, 24, 40, 64]
    assert "given" not in read(tmp_path / "wide" / "lineage.json")
    assert not (tmp_path / "wide" / "given").exists()


def test_another_k_is_trained_around_the_same_core(model, sources, tmp_path):
    spec = training(model, {"kind": "selected"}, sae={"k": 3})
    run(spec, tmp_path / "out", sources_dir=sources)
    assert read(tmp_path / "out" / "metrics.json")["l0"] == pytest.approx(3, rel=0.1)


def test_a_control_that_is_mostly_the_core_says_that_it_is_weak(trained):
    for kind in CONTROLS:
        out, report = trained[kind]
        told = read(out / "lineage.json")["given"]
        is_weak = told["overlap"] is not None and told["overlap"] > 0.5
        assert told["is_weak_control"] is is_weak
        assert ("weak_control" in report.events) is is_weak
    assert read(trained["selected"][0] / "lineage.json")["given"]["is_weak_control"] is None


def test_a_training_can_be_built_around_what_another_training_selected(model, trained, tmp_path):
    out, _ = trained["random_directions"]
    shutil.copytree(out, tmp_path / "trn_1.0")
    kept = [e for e in read(out / "lineage.json")["core"] if e["parent_core_index"] is not None]
    core = {"kind": "selected", "cycle": {"job_id": "trn_1", "cycle_index": 0}}
    run(training(model, core, job_id="trn_2"), tmp_path / "out", sources_dir=tmp_path)
    entries = {e["latent_id"]: e for e in read(tmp_path / "out" / "lineage.json")["given"]["core"]}
    kinds = {entries[entry["latent_id"]]["origin_kind"] for entry in kept}
    assert kinds <= {"random_directions"}
    assert {e["origin_kind"] for e in entries.values()} - kinds == {"learned"}


@pytest.mark.parametrize(
    ("overrides", "param", "values"),
    [
        ({"activations": {"layer": 2}}, "core.hook", ("model.layers.2", "model.layers.1")),
        ({"data": {"split": [0.6, 0.2, 0.2]}}, "core.split", ("0.6", "0.8")),
        ({"activations": {"special_ids": [0]}}, "core.special_ids", ("(0,)", "(0, 1, 2)")),
        ({"sae": {"n_latents": 45}}, "core", ("(40)", "45")),
    ],
)
def test_a_core_that_does_not_fit_is_refused_with_the_two_values_before_anything_is_harvested(
    model, sources, tmp_path, overrides, param, values
):
    spec = training(model, {"kind": "selected"}, selection={"max_core": None}, **overrides)
    error = refusal(spec, tmp_path, sources_dir=sources)
    assert error.param == param
    assert error.failure == ("core_too_large" if param == "core" else "core_mismatch")
    assert all(value in error.message for value in values)


def test_a_scale_that_is_not_the_cores_is_refused_with_both(model, sources, tmp_path):
    own = load_core(sources / "dst_source.1" / "core")
    scale = {"rms": own.rms * 2, "median_norm": own.median_norm}
    spec = training(model, {"kind": "selected"}, activations={"scale": scale})
    error = refusal(spec, tmp_path, sources_dir=sources)
    assert (error.failure, error.param) == ("core_mismatch", "activations.scale.rms")
    assert str(own.rms) in error.message
    assert str(own.rms * 2) in error.message


def test_a_scale_that_is_given_is_the_one_that_is_used(model, tmp_path):
    scale = {"rms": 3.0, "median_norm": 7.0}
    run(training(model, {"kind": "none"}, activations={"scale": scale}), tmp_path / "out")
    core = load_core(tmp_path / "out" / "core")
    assert (core.rms, core.median_norm) == (3.0, 7.0)


def test_a_source_that_is_missing_foreign_or_torn_is_refused_by_name(model, sources, tmp_path):
    spec = training(model, {"kind": "selected"})
    error = refusal(spec, tmp_path)
    assert (error.failure, error.param) == ("core_mismatch", "core.cycle")
    error = refusal(spec, tmp_path, sources_dir=tmp_path)
    assert "dst_source.1" in error.message
    shutil.copytree(sources / "dst_source.0", tmp_path / "dst_source.1")
    error = refusal(spec, tmp_path, sources_dir=tmp_path)
    assert "dst_source.0" in error.message
    shutil.rmtree(tmp_path / "dst_source.1")
    shutil.copytree(sources / "dst_source.1", tmp_path / "dst_source.1")
    (tmp_path / "dst_source.1" / "scores.safetensors").unlink()
    error = refusal(training(model, {"kind": "energy"}), tmp_path, sources_dir=tmp_path)
    assert error.failure == "core_mismatch"


def test_a_filter_that_leaves_nothing_says_how_often_latents_were_selected(model, sources, tmp_path):
    spec = training(model, {"kind": "filtered", "min_selected": 3})
    error = refusal(spec, tmp_path, sources_dir=sources)
    assert (error.failure, error.param) == ("core_empty", "core.min_selected")
    assert "at most 2" in error.message


def test_a_training_takes_no_core_folder_and_has_one_cycle(model, sources, tmp_path):
    spec = training(model, {"kind": "selected"})
    core_dir = sources / "dst_source.1" / "core"
    assert refusal(spec, tmp_path, sources_dir=sources, core_dir=core_dir).failure == "core_mismatch"
    later = {**spec, "cycle_index": 1}
    assert "cycle_index = 1" in refusal(later, tmp_path, sources_dir=sources).message


def test_a_width_that_nobody_filled_in_is_refused_not_left_out(model, tmp_path):
    error = refusal(training(model, {"kind": "none", "width_of": SOURCE}), tmp_path)
    assert (error.failure, error.param) == ("core_mismatch", "core.n_matched")
    assert "dst_source.1" in error.message


class Killed(Exception):
    """The process is gone."""


class Mortal(Recorder):
    """Dies at the first checkpoint."""

    def checkpoint(self, step, path):
        super().checkpoint(step, path)
        raise Killed


def test_a_training_that_broke_off_goes_on_to_the_same_bits(model, sources, trained, tmp_path):
    spec = CycleSpec.model_validate(training(model, {"kind": "energy"}))
    cache, report = Path(f"{model}-cache"), Mortal()
    checkpoints = Checkpoints(tmp_path / "checkpoints", every_s=0)
    places = Places(cache, sources_dir=sources)
    with pytest.raises(Killed):
        run_cycle(spec, tmp_path / "out", places=places, report=report, checkpoints=checkpoints)
    again, place = Recorder(), Path(report.checkpoints[0][1])
    run_cycle(
        spec, tmp_path / "out", places=Places(cache, sources_dir=sources, resume_dir=place), report=again
    )
    assert again.events["resumed"][1]["step"] == report.checkpoints[0][0] > 0
    for name in ("sae/sae_weights.safetensors", "given/core.safetensors", "lineage.json"):
        assert (tmp_path / "out" / name).read_bytes() == (trained["energy"][0] / name).read_bytes(), name


def test_a_checkpoint_of_a_training_around_another_core_is_not_gone_on_from(model, sources, tmp_path):
    spec = CycleSpec.model_validate(training(model, {"kind": "energy"}))
    other = tmp_path / "sources"
    shutil.copytree(sources, other)
    lineage = other / "dst_source.1" / "lineage.json"
    lineage.write_text(lineage.read_text() + " ")
    assert fingerprint_of(spec, None, sources) == fingerprint_of(spec, None, sources)
    assert fingerprint_of(spec, None, sources) != fingerprint_of(spec, None, other)


@pytest.mark.parametrize("kind", ["selected", *CONTROLS])
def test_the_service_reads_what_a_training_leaves(trained, kind):
    result = read_result(trained[kind][0], is_match=False)
    assert result.lineage.given.kind == kind
    assert len(result.lineage.given.core) == len(result.lineage.core) - sum(
        entry.parent_core_index is None for entry in result.lineage.core
    ) + len(result.lineage.dropped)
