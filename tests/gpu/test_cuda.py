"""Language model and whole cycles on a GPU: what the CPU gives, up to rounding.

Tolerances: 1e-4 of the largest value for one pass in float32 (other kernels, other order of sums), 3e-2 in
bfloat16; a whole cycle chooses other latents at ties, so its figures may differ by 0.05.
"""

import json

import pytest
import torch

from dmsae.config import ActivationConfig, CycleSpec
from dmsae.cycle_inputs import Places
from dmsae.cycle_steps import run_cycle
from dmsae.formats import load_core
from dmsae.hooks import resolve_hook, run_lower, run_upper
from dmsae.models import load_model
from dmsae.sources import LocalModel
from tests.recorder import Recorder
from tests.tiny import FAMILIES, VOCAB_SIZE, save_tiny_model
from tests.unit.test_families import spec_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")

TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2}


def pass_on(device, folder, *, hook, dtype):
    """Run a padded batch up to the hook and on from it; give activations, logits and gradient on the CPU."""
    activations = ActivationConfig(layer=1, hook=hook, model_dtype=dtype)
    source = LocalModel(source="local", path=str(folder))
    loaded = load_model(source, activations=activations, device=device, cache_dir=folder)
    assert loaded.device.type == device
    point = resolve_hook(loaded, layer=1, hook=hook)
    input_ids = torch.randint(3, VOCAB_SIZE, (4, 20), generator=torch.Generator().manual_seed(0))
    is_token = torch.arange(20) >= torch.tensor([0, 3, 7, 12])[:, None]
    found = run_lower(loaded, point, input_ids=input_ids, is_token=is_token).cpu().requires_grad_()
    logits = run_upper(loaded, point, input_ids=input_ids, is_token=is_token, activations=found)
    (gradient,) = torch.autograd.grad(logits[is_token].logsumexp(-1).square().sum(), found)
    return [each.detach().cpu()[is_token] for each in (found, logits, gradient)]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("hook", ["resid_post", "mlp_out", "attn_out"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_runs_a_model_as_a_cpu_does(family, hook, dtype, tmp_path):
    folder = save_tiny_model(tmp_path, family=family)
    on_cuda, on_cpu = (pass_on(device, folder, hook=hook, dtype=dtype) for device in ("cuda", "cpu"))
    for one, other in zip(on_cuda, on_cpu, strict=True):
        atol = TOLERANCES[dtype] * other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def chain_on(device, folder, **activations):
    """Run two cycles and give the metrics and the last core of both."""
    metrics = []
    for index in range(2):
        spec = spec_of(folder, cycle_index=index, **activations).model_dump()
        spec["config"]["device"] = device
        core = folder / device / str(index - 1) / "core" if index else None
        out = folder / device / str(index)
        out.parent.mkdir(exist_ok=True)
        places = Places(folder / "cache", core)
        run_cycle(CycleSpec.model_validate(spec), out, places=places, report=Recorder())
        metrics.append(json.loads((out / "metrics.json").read_text()))
    return metrics, load_core(folder / device / "1" / "core")


@pytest.mark.parametrize("settings", [{}, {"hook": "mlp_out"}, {"model_dtype": "bfloat16"}])
def test_a_chain_on_a_gpu_measures_what_one_on_a_cpu_does(settings, tmp_path):
    save_tiny_model(tmp_path / "model", family="gemma2")
    (on_cuda, core), (on_cpu, _) = (chain_on(device, tmp_path, **settings) for device in ("cuda", "cpu"))
    for one, other in zip(on_cuda, on_cpu, strict=True):
        assert one["device"] == "cuda:0"
        for name in ("rms", "median_norm", "ce_clean", "ce_zero_all"):
            assert one[name] == pytest.approx(other[name], rel=TOLERANCES[one["model_dtype"]])
        for name in ("explained_variance", "ce_increase"):
            assert one[name] == pytest.approx(other[name], abs=0.05)
    assert core.W_enc.device.type == "cpu"
