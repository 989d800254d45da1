"""Whole cycles on a tiny model of each family, at each hook point, and what they say of themselves."""

import json
import math
from pydoc_data.topics import topics

import pytest
import torch

from dmsae.config import CycleSpec
from dmsae.cycle_inputs import Places
from dmsae.cycle_steps import run_cycle
from dmsae.errors import CycleFailed
from dmsae.formats import load_core
from tests.recorder import Recorder
from tests.tiny import FAMILIES, save_tiny_model, tiny_spec

BUDGET = {
    "sae": {"n_latents": 32, "k": 4, "block_widths": [8, 16]},
    "training": {"n_tokens": 4096, "batch_tokens": 128, "lr": 3e-3, "threshold_tokens": 1024},
    "attribution": {"n_tokens": 600, "ablation_tokens": 100, "ablation_latents": 3},
    "selection": {"max_core": 12},
    "evaluation": {"n_tokens": 400},
}


def spec_of(folder, *, cycle_index=0, **activations):
    """Give the spec of a cycle on the model in `folder`, and on a text that is read in no time."""
    file = folder / "some.txt"
    file.write_text("\n\n".join(topics[name] for name in sorted(topics))[:80_000], encoding="utf-8")
    text = {"source": "files", "paths": [str(file)]}
    data = {"text": text, "context_length": 24, "prepend_bos": True, "split": [0.6, 0.2, 0.2]}
    spec = tiny_spec(
        folder / "model",
        cycle_index=cycle_index,
        data=data,
        **BUDGET,
        activations={"layer": 1, **activations},
    )
    return CycleSpec.model_validate(spec)


def run_chain(folder, *, n_cycles=2, family, **activations):
    """Run cycles, each from the core of the one before; give what was said and measured in each."""
    save_tiny_model(folder / "model", family=family)
    results = []
    for index in range(n_cycles):
        report = Recorder()
        core = folder / str(index - 1) / "core" if index else None
        places = Places(folder / "cache", core)
        spec = spec_of(folder, cycle_index=index, **activations)
        run_cycle(spec, folder / str(index), places=places, report=report)
        metrics = json.loads((folder / str(index) / "metrics.json").read_text())
        results.append(({kind: data for kind, (_, data) in report.events.items()}, metrics))
    return results


def assert_sound(metrics):
    assert metrics["explained_variance"] > 0.2
    assert abs(metrics["ce_zero_kept"] - metrics["ce_clean"]) > 1e-4
    assert metrics["kl_per_prefix"][-1] > 0
    assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, float))
    assert 0 < metrics["n_core"] <= 12


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chain_of_cycles_runs_on_every_family(family, tmp_path):
    (events, first), (_, second) = run_chain(tmp_path, family=family)
    assert_sound(first)
    assert_sound(second)
    assert second["n_kept"] > 0
    path = {"gpt_neox": "gpt_neox.layers.1", "gpt2": "transformer.h.1"}.get(family, "model.layers.1")
    expected = {"path": path, "hook": "resid_post", "layer": 1, "n_layers": 4, "d_model": 32}
    assert events["hook_resolved"] == expected
    loaded = events["model_loaded"]
    assert loaded["model_type"] == family
    assert loaded["attention"] == ("eager" if family == "gemma2" else "sdpa")
    assert loaded["model_dtype"] == "float32"
    assert first["hook_path"] == path
    assert {name: first[name] for name in loaded} == loaded


@pytest.mark.parametrize("hook", ["mlp_out", "attn_out"])
@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_a_chain_of_cycles_runs_on_what_a_part_of_the_layer_adds(family, hook, tmp_path):
    (_, first), (_, second) = run_chain(tmp_path, family=family, hook=hook)
    assert_sound(first)
    assert second["n_kept"] > 0
    core = load_core(tmp_path / "1" / "core")
    assert core.provenance.hook == f"{first['hook_path']}:{hook}"


def test_a_cycle_on_a_bfloat16_model_trains_a_float32_sae(tmp_path):
    ((events, metrics),) = run_chain(tmp_path, n_cycles=1, family="gemma2", model_dtype="bfloat16")
    assert_sound(metrics)
    assert events["model_loaded"]["model_dtype"] == metrics["model_dtype"] == "bfloat16"
    core = load_core(tmp_path / "0" / "core")
    assert core.W_enc.dtype == torch.float32
    assert core.provenance.dtype == "bfloat16"


@pytest.mark.parametrize("changed", [{"hook": "mlp_out"}, {"model_dtype": "bfloat16"}, {"special_ids": [0]}])
def test_a_core_of_other_activations_is_refused(changed, tmp_path):
    run_chain(tmp_path, n_cycles=1, family="llama")
    places = Places(tmp_path / "cache", tmp_path / "0" / "core")
    with pytest.raises(CycleFailed) as caught:
        run_cycle(
            spec_of(tmp_path, cycle_index=1, **changed), tmp_path / "1", places=places, report=Recorder()
        )
    assert caught.value.failure == "core_mismatch"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_device_that_is_not_there_ends_the_cycle_before_anything_is_read(tmp_path):
    spec = tiny_spec(tmp_path / "no model", device="cuda")
    with pytest.raises(CycleFailed, match="finds no CUDA device") as caught:
        run_cycle(
            CycleSpec.model_validate(spec),
            tmp_path / "0",
            places=Places(tmp_path / "cache"),
            report=Recorder(),
        )
    assert (caught.value.failure, caught.value.param) == ("device_unavailable", "device")
