"""Whole distillations of a tiny model around an exempt core, through the trainer's own entry point."""

import io
import json
import os

import pytest
import torch
from safetensors.torch import load_file

from dmsae import cycle
from dmsae.config import DistillationConfig
from dmsae.formats import load_core, load_sae
from dmsae.presets import PRESETS
from tests.tiny import save_tiny_model, tiny_spec, write_spec
from tests.trained import EXEMPT, name_of

N_CYCLES = 3
K = 6
both_budgets = pytest.mark.parametrize("sparsity", EXEMPT, ids=name_of)


@pytest.fixture(scope="module", autouse=True)
def _process_as_it_was():
    """What a trainer changes for its whole process, it changes for ours."""
    environment, n_threads = dict(os.environ), torch.get_num_threads()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(n_threads)
    torch.use_deterministic_algorithms(is_deterministic)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def run_cycle(model, folder, *, index, **sections):
    """Run one cycle, from the core of the one before it in `folder`, and give what it said."""
    said = io.StringIO()
    spec = write_spec(folder / f"{index}.json", tiny_spec(model, cycle_index=index, **sections))
    core = ["--core", str(folder / str(index - 1) / "core")] if index else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cycle, "claim_stdout", lambda: said)
        status = cycle.main([str(spec), str(folder / str(index)), "--cache", str(folder / "cache"), *core])
    lines = [json.loads(line) for line in said.getvalue().splitlines()]
    assert (status, lines[-1]) == (0, {"type": "done"}), lines[-1]
    return lines


@pytest.fixture(scope="module")
def chains(model, tmp_path_factory):
    """Three cycles under each budget: what each said, and the folder."""
    found = {}
    for sparsity in EXEMPT:
        folder = tmp_path_factory.mktemp(name_of(sparsity))
        found[name_of(sparsity)] = (
            [run_cycle(model, folder, index=index, sae=sparse(sparsity)) for index in range(N_CYCLES)],
            folder,
        )
    return found


def sparse(sparsity):
    return {"n_latents": 64, "k": K, "block_widths": [12, 24, 40], **sparsity}


def events(lines):
    return {line["kind"]: line["data"] for line in lines if line["type"] == "event"}


def read(file):
    return json.loads(file.read_text())


def bits(folder):
    """Give the bytes of all that a cycle found out."""
    names = ["sae/sae_weights", "core/core", "scores"]
    files = [*(f"{name}.safetensors" for name in names), "core/core.json", "lineage.json"]
    return {file: (folder / file).read_bytes() for file in files}


def weights(folder):
    return load_file(folder / "sae" / "sae_weights.safetensors")


@both_budgets
def test_the_frozen_encoder_vectors_pass_from_cycle_to_cycle_bit_for_bit(chains, sparsity):
    _, folder = chains[name_of(sparsity)]
    for index in range(1, N_CYCLES):
        given = load_core(folder / str(index - 1) / "core")
        assert torch.equal(weights(folder / str(index))["W_enc"][:, : given.n_core], given.W_enc)
        assert read(folder / str(index) / "lineage.json")["retention"] is not None


@both_budgets
def test_the_saved_threshold_is_zero_on_the_core_and_one_value_elsewhere(chains, sparsity):
    _, folder = chains[name_of(sparsity)]
    for index in range(N_CYCLES):
        sae, facts = load_sae(folder / str(index) / "sae")
        assert (facts["core_sparsity"], facts["noncore_budget"]) == tuple(sparsity.values())
        assert sae.n_core == (load_core(folder / str(index - 1) / "core").n_core if index else 0)
        assert not sae.threshold[: sae.n_core].any()
        assert (sae.threshold[sae.n_core :] == sae.threshold[-1]).all()
        assert sae.threshold[-1] > 0


def test_cycle_0_is_that_of_batch_topk_bit_for_bit(model, chains, tmp_path):
    run_cycle(model, tmp_path, index=0)
    for _, folder in chains.values():
        for name in (
            "sae/sae_weights.safetensors",
            "core/core.safetensors",
            "core/core.json",
            "lineage.json",
        ):
            assert (folder / "0" / name).read_bytes() == (tmp_path / "0" / name).read_bytes()


@both_budgets
def test_the_metrics_tell_what_the_core_used_and_what_was_left(chains, sparsity):
    _, folder = chains[name_of(sparsity)]
    for index in range(N_CYCLES):
        metrics = read(folder / str(index) / "metrics.json")
        k_min = K / 4
        if index == 0 or sparsity["noncore_budget"] == "fixed":
            assert metrics["noncore_budget"] == K
        else:
            assert k_min <= metrics["noncore_budget"] < K
        assert metrics["l0"] == pytest.approx(metrics["l0_core"] + metrics["l0_non_core"])
        assert (metrics["core_density_given"] is None) == (index == 0)
        assert (metrics["firing_jaccard_median"] is None) == (index == 0)


@both_budgets
def test_each_event_is_said_exactly_where_its_figure_passes_its_bound(chains, sparsity):
    said, folder = chains[name_of(sparsity)]
    for index in range(N_CYCLES):
        metrics, told = read(folder / str(index) / "metrics.json"), events(said[index])
        assert ("dense_core" in told) == ((metrics["core_density_given"] or 0) > 0.5)
        assert ("identity_lost" in told) == metrics["identity_lost"]
        if "l0_over_budget" in told:
            assert told["l0_over_budget"]["l0_core"] > K - K / 4
    # exempt, the first core fires at most tokens within one cycle: METHOD 4 gives 99%
    warnings = {"dense_core", "identity_lost", "l0_over_budget"}
    assert not warnings & set(events(said[0]))
    assert warnings <= set(events(said[1]))


def test_the_same_spec_and_core_give_the_same_bits(model, chains, tmp_path):
    sparsity = EXEMPT[0]
    _, folder = chains[name_of(sparsity)]
    (tmp_path / "0").symlink_to(folder / "0")
    run_cycle(model, tmp_path, index=1, sae=sparse(sparsity))
    for name in (
        "sae/sae_weights.safetensors",
        "core/core.safetensors",
        "scores.safetensors",
        "lineage.json",
    ):
        assert (tmp_path / "1" / name).read_bytes() == (folder / "1" / name).read_bytes(), name


@both_budgets
def test_the_gemma_preset_takes_both_budgets_and_its_widths_are_those_of_the_method(sparsity):
    preset = PRESETS["gemma-2-2b-l12"]
    for sae in (preset["sae"], {**preset["sae"], **sparsity}):
        config = DistillationConfig.model_validate({**preset, "sae": sae})
        assert config.max_core == 8192 == min(4 * 2048, 65_536 - 30_720 - 1)
        assert config.prefix_widths(0) == [2048, 6144, 14_336, 30_720, 65_536]
        assert config.prefix_widths(config.max_core) == [10_240, 14_336, 22_528, 38_912, 65_536]
        assert config.n_cycles == 8
