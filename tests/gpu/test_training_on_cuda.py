"""Training on a GPU: the same start, the same results up to rounding, the same bits twice."""

import pytest
import torch

from dmsae.formats import load_sae, save_sae
from dmsae.sae import MatryoshkaSae
from dmsae.training import Trainer
from tests.trained import (
    BATCH,
    D_MODEL,
    SPARSITIES,
    Batches,
    assert_same_bits,
    make_config,
    name_of,
    random_x,
)
from tests.unit.test_sae import make_core

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
all_sparsities = pytest.mark.parametrize("sparsity", SPARSITIES, ids=name_of)
both_steps = pytest.mark.parametrize("step", ["fast", "plain"])
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def make_trainer(sparsity: dict[str, str], device: torch.device, step: str) -> Trainer:
    config = make_config(sae=sparsity, dead_after_tokens=2 * BATCH, step=step)
    return Trainer(config, make_core(D_MODEL, 5), Batches(random_x(12 * BATCH)), seed=0, device=device)


def finished(sparsity: dict[str, str], device: torch.device, step: str) -> MatryoshkaSae:
    trainer = make_trainer(sparsity, device, step)
    list(trainer.run())
    return trainer.finish().sae


@both_steps
@all_sparsities
def test_the_start_has_the_same_bits_on_any_device(sparsity, step):
    on_cuda, on_cpu = (make_trainer(sparsity, device, step).sae() for device in (CUDA, CPU))
    assert on_cuda.W_enc.device.type == "cuda"
    assert_same_bits(on_cuda.to(CPU), on_cpu)


@both_steps
@all_sparsities
def test_a_gpu_learns_what_a_cpu_learns_and_the_same_bits_twice(sparsity, step, tmp_path):
    on_cuda, on_cpu = finished(sparsity, CUDA, step), finished(sparsity, CPU, step)
    assert on_cuda.threshold.device.type == "cuda"
    assert_same_bits(finished(sparsity, CUDA, step), on_cuda)
    torch.testing.assert_close(on_cuda.W_dec.cpu(), on_cpu.W_dec, rtol=1e-2, atol=1e-2)
    save_sae(tmp_path / "sae", on_cuda.to(CPU), rms=2.0, facts={})
    assert torch.equal(load_sae(tmp_path / "sae")[0].W_enc, on_cuda.W_enc.cpu())


@both_steps
@all_sparsities
def test_stopped_on_a_gpu_and_resumed_equals_never_stopped(sparsity, step):
    first = make_trainer(sparsity, CUDA, step)
    run = first.run()
    for _ in range(5):
        next(run)
    state = first.state_dict()
    resumed = make_trainer(sparsity, CUDA, step)
    resumed.load_state_dict(state)
    assert list(resumed.run()) == list(run)
    assert_same_bits(resumed.finish().sae, first.finish().sae)
