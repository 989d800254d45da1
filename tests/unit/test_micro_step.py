"""A batch computed in parts: the same selection, the same losses and gradients, the same SAE."""

from typing import Any

import pytest
import torch

from dmsae.training import Trainer
from tests.trained import (
    BATCH,
    D_MODEL,
    SPARSITIES,
    Batches,
    assert_same_bits,
    make_config,
    make_trainer,
    name_of,
    random_x,
    tensors_of,
)
from tests.unit.test_sae import make_core

N_STEPS = 12


def pair(n_parts: int, sparsity: dict[str, str], **training: Any) -> tuple[Trainer, Trainer]:
    """A trainer of whole batches, and one of parts."""
    config = make_config(sae=sparsity, dead_after_tokens=2 * BATCH, step="plain", **training)
    core = make_core(D_MODEL, 5)
    whole, parted = (make_trainer(config, core=core, n_steps=N_STEPS) for _ in range(2))
    assert parted.split_batches(n_parts)
    return whole, parted


@pytest.mark.parametrize("n_parts", [2, 3, BATCH])
@pytest.mark.parametrize("prefix_loss", ["sum", "mean"])
@pytest.mark.parametrize("sparsity", SPARSITIES, ids=name_of)
def test_the_selection_is_the_same_and_gradients_differ_by_rounding_alone(
    sparsity: dict[str, str], prefix_loss: str, n_parts: int
) -> None:
    whole, parted = pair(n_parts, {**sparsity, "prefix_loss": prefix_loss})
    is_dead = torch.arange(len(whole.sae().b_enc)) % 3 == 0
    x = random_x(BATCH, seed=3)
    selected = [trainer._stepper.select(x) for trainer in (whole, parted)]
    assert torch.equal(selected[0].n_active, selected[1].n_active)
    assert selected[0].budget == selected[1].budget
    one, other = (trainer._stepper.losses(is_dead=is_dead) for trainer in (whole, parted))
    torch.testing.assert_close(other.prefixes, one.prefixes, rtol=1e-6, atol=0)
    torch.testing.assert_close(other.dead, one.dead, rtol=1e-6, atol=0)
    assert one.dead > 0
    total = one.prefixes.sum() + whole._config.training.aux_coefficient * one.dead
    total = total / len(one.prefixes) if prefix_loss == "mean" else total
    norms = [trainer._stepper.update(total, lr=1e-2) for trainer in (whole, parted)]
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-5, atol=0)
    for name, slope in whole._stepper.gradients().items():
        found = parted._stepper.gradients()[name]
        torch.testing.assert_close(found, slope, rtol=1e-4, atol=1e-6 * slope.abs().max().item())


def test_it_trains_the_same_sae() -> None:
    whole, parted = pair(2, SPARSITIES[0])
    steps, others = list(whole.run()), list(parted.run())
    for step, other in zip(steps, others, strict=True):
        assert other.loss == pytest.approx(step.loss, rel=1e-4)
        assert other.dead_fraction == step.dead_fraction
    for name, tensor in tensors_of(whole.finish().sae).items():
        torch.testing.assert_close(tensors_of(parted.finish().sae)[name], tensor, rtol=1e-2, atol=1e-4)


def test_it_goes_on_from_a_whole_batch_s_state_and_the_same_arguments_give_the_same_bits() -> None:
    whole, parted = pair(2, SPARSITIES[0])
    run = whole.run()
    for _ in range(5):
        next(run)
    parted.load_state_dict(whole.state_dict())
    assert parted.step == 5
    list(parted.run())
    _, again = pair(2, SPARSITIES[0])
    again.load_state_dict(whole.state_dict())
    list(again.run())
    assert_same_bits(again.finish().sae, parted.finish().sae)


def test_a_step_over_active_latents_has_nothing_to_split() -> None:
    config = make_config(step="fast")
    trainer = Trainer(config, None, Batches(random_x(4 * BATCH)), seed=0)
    assert not trainer.split_batches(2)
