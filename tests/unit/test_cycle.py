"""One whole cycle of a tiny model: its files, its promises, and how it fails."""

import errno
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from dmsae.config import SPEC_VERSION, CycleSpec
from dmsae.cycle import FAILED, as_failure, main, read_spec
from dmsae.cycle_inputs import Places
from dmsae.cycle_steps import run_cycle
from dmsae.errors import CycleFailed
from dmsae.formats import load_core
from dmsae.supervision import ORPHANED
from tests.recorder import Recorder
from tests.tiny import save_tiny_model, tiny_spec, write_spec

NAMED_METRICS = """
    n_candidates n_core n_new n_kept n_dropped retention share is_truncated prefix_widths l0
    l0_core l0_non_core core_density dead_fraction explained_variance
    explained_variance_per_prefix explained_variance_median_per_prefix ce_clean ce_zero_all
    ce_zero_kept ce_mean ce_increase ce_increase_per_prefix kl_per_prefix lr_saelens lr_kept
    lr_kept_per_prefix score_effective_n n_borderline halves ablation rms median_norm n_tokens n_steps
    n_tokens_dropped seconds phase_seconds core_density_given noncore_budget identity_lost
    model_revision model_type model_dtype attention device hook_path n_documents n_rows_skipped
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def run(spec, out, *, core_dir=None):
    report = Recorder()
    places = Places(out.parent / "cache", core_dir)
    run_cycle(CycleSpec.model_validate(spec), out, places=places, report=report)
    return report


@pytest.fixture(scope="module")
def chain(model, tmp_path_factory):
    """Three cycles, each from the core of the one before."""
    folder = tmp_path_factory.mktemp("chain")
    for index in range(3):
        core_dir = folder / str(index - 1) / "core" if index else None
        run(tiny_spec(model, cycle_index=index), folder / str(index), core_dir=core_dir)
    return folder


def read(file):
    return json.loads(file.read_text())


def sae(folder):
    return load_file(folder / "sae" / "sae_weights.safetensors")


def refusal(spec, tmp_path, **options):
    report = Recorder()
    with pytest.raises(CycleFailed) as caught:
        run_cycle(
            CycleSpec.model_validate(spec),
            tmp_path / "out",
            places=Places(tmp_path, **options),
            report=report,
        )
    assert not (tmp_path / "out").exists()
    return caught.value, report


def test_a_cycle_leaves_every_file_of_the_contract(chain):
    files = sorted(str(file.relative_to(chain / "0")) for file in (chain / "0").rglob("*") if file.is_file())
    assert files == [
        "core/core.json",
        "core/core.safetensors",
        "lineage.json",
        "metrics.json",
        "sae/cfg.json",
        "sae/sae_weights.safetensors",
        "scores.safetensors",
        "snippets/latents.jsonl.gz",
        "snippets/places.txt",
        "spec.json",
    ]


def test_metrics_hold_what_the_contract_names(chain):
    for index in range(3):
        metrics = read(chain / str(index) / "metrics.json")
        assert set(NAMED_METRICS.split()) <= set(metrics)
        assert metrics["n_tokens"] == 16_384
        assert (metrics["model_dtype"], metrics["device"]) == ("float32", "cpu")
        assert metrics["hook_path"] == "model.layers.1"
        assert metrics["n_documents"] > 0
        assert metrics["n_rows_skipped"] == 0
        assert metrics["identity_lost"] is read(chain / str(index) / "lineage.json")["identity_lost"]
        assert set(metrics["phase_seconds"]) == {
            "loading",
            "harvesting",
            "training",
            "attributing",
            "evaluating",
        }


def test_the_same_spec_gives_the_same_bits(model, chain, tmp_path):
    core_dir = chain / "0" / "core"
    run(tiny_spec(model, cycle_index=1), tmp_path / "again", core_dir=core_dir)
    for name in (
        "sae/sae_weights.safetensors",
        "sae/cfg.json",
        "core/core.safetensors",
        "core/core.json",
        "scores.safetensors",
        "lineage.json",
        "snippets/latents.jsonl.gz",
        "snippets/places.txt",
        "spec.json",
    ):
        assert (tmp_path / "again" / name).read_bytes() == (chain / "1" / name).read_bytes(), name


def test_another_seed_gives_other_weights_on_the_same_tokens(model, chain, tmp_path):
    run(tiny_spec(model, seed=1), tmp_path / "other")
    assert not torch.equal(sae(tmp_path / "other")["W_dec"], sae(chain / "0")["W_dec"])
    assert load_core(tmp_path / "other" / "core").rms == load_core(chain / "0" / "core").rms


@pytest.mark.parametrize("index", [1, 2])
def test_core_encoder_vectors_pass_on_bit_for_bit_and_decoder_rows_start_afresh(chain, index):
    before, after = sae(chain / str(index - 1)), sae(chain / str(index))
    selected = [latent["sae_index"] for latent in read(chain / str(index - 1) / "lineage.json")["core"]]
    assert torch.equal(after["W_enc"][:, : len(selected)], before["W_enc"][:, selected])
    is_same_row = (after["W_dec"][: len(selected)] == before["W_dec"][selected]).all(dim=1)
    assert not is_same_row.any()


@pytest.mark.parametrize("index", [1, 2])
def test_identities_survive_and_nothing_is_lost_from_the_records(chain, index):
    before = read(chain / str(index - 1) / "lineage.json")["core"]
    lineage = read(chain / str(index) / "lineage.json")
    given = {latent["core_index"]: latent for latent in before}
    kept = [latent for latent in lineage["core"] if latent["parent_core_index"] is not None]
    new = [latent for latent in lineage["core"] if latent["parent_core_index"] is None]
    for latent in kept:
        parent = given[latent["parent_core_index"]]
        for field in ("latent_id", "origin_cycle", "origin_index"):
            assert latent[field] == parent[field]
        assert latent["times_selected"] == parent["times_selected"] + 1
    assert all(latent["latent_id"] == f"dst_tiny.{index}.{latent['sae_index']}" for latent in new)
    ids = {latent["latent_id"] for latent in kept} | {latent["latent_id"] for latent in lineage["dropped"]}
    assert ids == {latent["latent_id"] for latent in before}
    assert lineage["retention"] == len(kept) / len(before)


def test_new_latents_enter_the_core_after_cycle_0(chain):
    origins = {latent["origin_cycle"] for latent in read(chain / "2" / "lineage.json")["core"]}
    assert 0 in origins
    assert len(origins) > 1


def test_the_scale_is_taken_once_and_travels_with_the_core(chain):
    scales = {(core.rms, core.median_norm) for core in (load_core(chain / str(i) / "core") for i in range(3))}
    assert len(scales) == 1


def test_a_core_cut_at_max_core_says_so_and_what_share_it_holds(model, tmp_path):
    report = run(tiny_spec(model, selection={"max_core": 3}), tmp_path / "out")
    message, data = report.events["core_truncated"]
    assert "max_core = 3" in message
    assert data["n_core"] == 3 < data["n_wanted"]
    assert data["share"] == read(tmp_path / "out" / "metrics.json")["share"] < 0.9


def test_a_cycle_tells_its_phases_its_hook_what_it_dropped_and_its_last_step(model, tmp_path):
    report = run(tiny_spec(model), tmp_path / "out")
    assert report.phases == ["loading", "harvesting", "training", "attributing", "evaluating"]
    assert report.events["hook_resolved"][1]["path"] == "model.layers.1"
    dropped = report.events["tokens_dropped"][1]
    assert set(dropped) == {"training", "attribution", "evaluation"}
    assert dropped["training"]["padding"] > 0
    last = report.steps[-1]
    assert last["step"] == last["n_steps"] == 64
    assert last["n_tokens"] == last["n_tokens_total"] == 16_384
    assert last["time_left_s"] >= 0


@pytest.mark.parametrize(
    ("overrides", "failure", "param"),
    [
        ({"activations": {"layer": 4}}, "layer_out_of_range", "activations.layer"),
        ({"data": {"context_length": 257}}, "context_too_long", "data.context_length"),
        ({"training": {"n_tokens": 10**9}}, "dataset_exhausted", "training.n_tokens"),
        ({"training": {"n_tokens": 100}}, "dataset_exhausted", "training.batch_tokens"),
        ({"attribution": {"n_tokens": 10**9}}, "dataset_exhausted", "attribution.n_tokens"),
        ({"evaluation": {"n_tokens": 10**9}}, "dataset_exhausted", "evaluation.n_tokens"),
    ],
)
def test_what_cannot_work_fails_with_its_code_before_anything_is_harvested(
    model, tmp_path, overrides, failure, param
):
    error, report = refusal(tiny_spec(model, **overrides), tmp_path)
    assert (error.failure, error.param) == (failure, param)
    assert report.phases == ["loading"]


def test_a_missing_model_is_told_from_an_unreadable_one(tmp_path):
    error, _ = refusal(tiny_spec(tmp_path / "nowhere"), tmp_path)
    assert error.failure == "model_not_found"
    (tmp_path / "empty").mkdir()
    error, _ = refusal(tiny_spec(tmp_path / "empty"), tmp_path)
    assert error.failure == "model_unreadable"


def test_a_core_found_at_another_hook_is_refused_with_both_values(model, chain, tmp_path):
    spec = tiny_spec(model, cycle_index=1, activations={"layer": 2})
    error, _ = refusal(spec, tmp_path, core_dir=chain / "0" / "core")
    assert error.failure == "core_mismatch"
    assert "model.layers.1" in error.message
    assert "model.layers.2" in error.message


def test_a_core_found_on_another_split_or_model_is_refused(model, chain, tmp_path):
    spec = tiny_spec(model, cycle_index=1, data={"split": [0.7, 0.2, 0.1]})
    error, _ = refusal(spec, tmp_path, core_dir=chain / "0" / "core")
    assert (error.failure, error.param) == ("core_mismatch", "core.split")
    other = save_tiny_model(tmp_path / "other", n_layers=3)
    error, _ = refusal(tiny_spec(other, cycle_index=1), tmp_path, core_dir=chain / "0" / "core")
    assert (error.failure, error.param) == ("core_mismatch", "core.model_revision")


def test_a_later_cycle_without_a_core_and_a_first_one_with_one_are_refused(model, chain, tmp_path):
    error, _ = refusal(tiny_spec(model, cycle_index=1), tmp_path)
    assert (error.failure, error.param) == ("core_mismatch", "core")
    error, _ = refusal(tiny_spec(model), tmp_path, core_dir=chain / "0" / "core")
    assert (error.failure, error.param) == ("core_mismatch", "core")


def test_an_unknown_field_or_a_newer_version_of_a_spec_is_refused_by_name(model, tmp_path):
    spec = tiny_spec(model)
    spec["config"]["sae"]["n_latnets"] = 3
    with pytest.raises(CycleFailed, match=r"config\.sae\.n_latnets") as caught:
        read_spec(write_spec(tmp_path / "typo.json", spec))
    assert caught.value.failure == "spec_unsupported"
    with pytest.raises(CycleFailed) as caught:
        read_spec(write_spec(tmp_path / "newer.json", {**tiny_spec(model), "spec_version": SPEC_VERSION + 1}))
    assert (caught.value.failure, caught.value.param) == ("spec_unsupported", "spec_version")


def test_a_spec_that_is_missing_or_no_json_is_refused(tmp_path):
    (tmp_path / "torn.json").write_text('{"spec_version": ')
    for name in ("torn.json", "absent.json"):
        with pytest.raises(CycleFailed) as caught:
            read_spec(tmp_path / name)
        assert caught.value.failure == "spec_unsupported"


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (MemoryError(), "out_of_memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EACCES, "Permission denied"), "internal_error"),
        (ValueError("unforeseen"), "internal_error"),
        (CycleFailed("non_finite", "told"), "non_finite"),
    ],
)
def test_whatever_goes_wrong_has_a_code(error, failure):
    assert as_failure(error).failure == failure


def test_memory_that_torch_cannot_get_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert as_failure(caught.value).failure == "out_of_memory"


def test_an_output_folder_that_holds_something_is_refused_before_anything_runs(tmp_path, capsys):
    (tmp_path / "left-over").touch()
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "spec.json"), str(tmp_path)])
    assert caught.value.code == 2
    assert "must be absent or an empty folder" in capsys.readouterr().err


PLAIN = {"step": "plain"}
"""For a process whose bits do not matter: it need not compile the fast step, which takes seconds."""


def trainer(*arguments):
    return [sys.executable, "-m", "dmsae.cycle", *map(str, arguments)]


@pytest.mark.slow
def test_a_process_runs_a_cycle_and_speaks_the_protocol_alone(model, chain, tmp_path):
    spec = write_spec(tmp_path / "spec.json", tiny_spec(model))
    out = tmp_path / "out"
    done = subprocess.run(
        trainer(spec, out, "--cache", tmp_path), capture_output=True, text=True, timeout=200, check=False
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert {line["type"] for line in lines} == {"phase", "event", "progress", "done"}
    assert lines[-1] == {"type": "done"}
    assert torch.equal(sae(out)["W_enc"], sae(chain / "0")["W_enc"])


@pytest.mark.slow
def test_a_process_that_fails_says_why_last_and_exits_3(tmp_path):
    spec = write_spec(tmp_path / "spec.json", tiny_spec(tmp_path / "nowhere", training=PLAIN))
    done = subprocess.run(
        trainer(spec, tmp_path / "out", "--cache", tmp_path),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == FAILED
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["type"], last["code"], last["param"]) == ("failed", "model_not_found", "model.path")


@pytest.mark.slow
def test_a_supervised_trainer_ends_in_the_middle_of_training_when_its_stdin_closes(model, tmp_path):
    long = tiny_spec(model, training={"n_tokens": None, "epochs": 10_000, **PLAIN})
    spec = write_spec(tmp_path / "spec.json", long)
    command = trainer(spec, tmp_path / "out", "--cache", tmp_path, "--supervised")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        types = []
        for line in process.stdout:
            types.append(json.loads(line)["type"])
            if types[-1] == "progress":
                break
        assert types[-1] == "progress"
        process.stdin.close()
        assert process.wait(timeout=10) == ORPHANED
