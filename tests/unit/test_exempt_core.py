"""Claims about training around a core that is exempt from the budget."""

from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor

from dmsae.config import DistillationConfig
from dmsae.formats import load_sae, save_sae
from dmsae.sae import MatryoshkaSae
from dmsae.sparsity import Sparsity
from dmsae.training import Trained, Trainer
from tests.trained import (
    BATCH,
    D_MODEL,
    EXEMPT,
    N_LATENTS,
    Batches,
    K,
    assert_same_bits,
    make_config,
    make_trainer,
    name_of,
    random_x,
    trained,
)
from tests.unit.test_sae import make_core

N_CORE = 5
K_MIN = 1.0
DYNAMIC, FIXED = EXEMPT
both_budgets = pytest.mark.parametrize("sparsity", EXEMPT, ids=name_of)


def finished(config: DistillationConfig, **arguments: Any) -> Trained:
    trainer, _ = trained(config, core=make_core(D_MODEL, N_CORE), **arguments)
    return trainer.finish()


def non_core_l0(sae: MatryoshkaSae, x: Tensor) -> float:
    return (sae.encode(x)[:, N_CORE:] > 0).sum().item() / len(x)


@both_budgets
def test_without_a_core_training_equals_plain_batch_topk_bit_for_bit(
    sparsity: dict[str, str],
) -> None:
    plain, plain_steps = trained(make_config(dead_after_tokens=2 * BATCH))
    other, steps = trained(make_config(sae=sparsity, dead_after_tokens=2 * BATCH))
    assert steps == plain_steps
    assert any(step.aux_loss > 0 for step in steps)
    assert_same_bits(other.finish().sae, plain.finish().sae)
    assert other.finish().noncore_budget == K


def test_the_core_is_active_beyond_the_budget_and_the_others_get_what_it_leaves() -> None:
    trainer, steps = trained(make_config(sae=DYNAMIC), core=make_core(D_MODEL, N_CORE))
    for step in steps:
        assert step.l0 - step.l0_core == pytest.approx(max(K_MIN, K - step.l0_core))
    budgets = [max(K_MIN, K - step.l0_core) for step in steps]
    assert trainer.finish().noncore_budget == pytest.approx(mean(budgets))


def test_under_the_fixed_budget_the_others_get_k_and_the_core_comes_on_top() -> None:
    trainer, steps = trained(make_config(sae=FIXED), core=make_core(D_MODEL, N_CORE))
    assert all(step.l0 - step.l0_core == pytest.approx(K) for step in steps)
    assert all(step.l0_core > 1 for step in steps)
    assert trainer.finish().noncore_budget == K


def test_a_core_that_uses_the_whole_budget_leaves_the_others_their_least() -> None:
    trainer = make_trainer(make_config(sae=DYNAMIC), core=make_core(D_MODEL, N_CORE))
    with torch.no_grad():
        trainer._parameters["b_enc"][:N_CORE] = 50.0
    step = next(trainer.run())
    assert step.l0_core == N_CORE > K
    assert step.l0 - step.l0_core == K_MIN


@both_budgets
def test_no_core_latent_counts_as_dead_and_the_dead_latents_loss_leaves_the_core_alone(
    sparsity: dict[str, str],
) -> None:
    biases = {}
    for core_sparsity in (sparsity, {}):
        config = make_config(sae=core_sparsity, dead_after_tokens=BATCH, aux_coefficient=10.0)
        trainer = make_trainer(config, core=make_core(D_MODEL, N_CORE))
        with torch.no_grad():
            trainer._parameters["b_enc"].fill_(-50.0)  # nothing fires: only the dead get a gradient
        step = next(trainer.run())
        assert step.l0 == 0
        assert step.aux_loss > 0
        biases[name_of(core_sparsity)] = (step.dead_fraction, trainer.sae().b_enc)
    dead_fraction, b_enc = biases[name_of(sparsity)]
    assert dead_fraction == (N_LATENTS - N_CORE) / N_LATENTS
    assert (b_enc[:N_CORE] == -50.0).all()
    assert (b_enc[N_CORE:] != -50.0).any()
    dead_fraction, b_enc = biases[""]
    assert dead_fraction == 1.0
    assert (b_enc[:N_CORE] != -50.0).any()


@both_budgets
def test_the_threshold_leaves_the_core_its_relu_and_the_others_exactly_their_budget(
    sparsity: dict[str, str],
) -> None:
    for threshold_tokens, n_used in [(3 * BATCH - 1, 3), (10**6, 12)]:
        config = make_config(sae=sparsity, threshold_tokens=threshold_tokens)
        sae, calibration, *_ = finished(config)
        x = random_x(12 * BATCH)[: n_used * BATCH]
        n_core_active = int((sae.pre_acts(x)[:, :N_CORE] > 0).sum())
        k_nc = max(K_MIN, K - n_core_active / len(x)) if sparsity == DYNAMIC else K
        assert calibration.n_exempt_active == n_core_active
        assert calibration.n_tokens == len(x)
        assert calibration.budget == round(k_nc * len(x))
        # one value at the border may be rounded otherwise by the dense product of inference
        assert non_core_l0(sae, x) * len(x) == pytest.approx(calibration.budget, abs=1)
        assert not sae.threshold[:N_CORE].any()
        assert (sae.threshold[N_CORE:] == sae.threshold[-1]).all()
        assert torch.equal(sae.encode(x)[:, :N_CORE], sae.pre_acts(x)[:, :N_CORE].relu())


@both_budgets
def test_the_saved_jumprelu_gives_what_training_gave(sparsity: dict[str, str], tmp_path: Path) -> None:
    config = make_config(sae=sparsity, threshold_tokens=BATCH)
    sae = finished(config).sae
    x = random_x(12 * BATCH)[:BATCH]
    in_training = Sparsity.of(config.sae, n_core=N_CORE).sparsify(sae.pre_acts(x)).latent_acts
    assert torch.equal(sae.encode(x), in_training)
    save_sae(tmp_path / "sae", sae, rms=3.7, facts={})
    loaded, _ = load_sae(tmp_path / "sae")
    assert not loaded.threshold[:N_CORE].any()
    torch.testing.assert_close(loaded.encode(x), in_training)


def test_the_same_settings_on_a_device_named_outright_give_the_same_bits() -> None:
    config, core = make_config(sae=DYNAMIC), make_core(D_MODEL, N_CORE)
    named = Trainer(config, core, Batches(random_x(12 * BATCH)), seed=0, device=torch.device("cpu"))
    list(named.run())
    assert_same_bits(named.finish().sae, finished(config).sae)
