"""Claims about training: one step, what is frozen, what ends it, the same bits, what is learned."""

import pytest
import torch
from torch import Tensor

from dmsae.config import TrainingConfig
from dmsae.errors import CycleFailed, DmsaeError
from dmsae.plain_step import remove_radial_gradient_
from dmsae.sae import Core, normalise_rows_
from dmsae.training import Trainer, learning_rate
from tests.trained import (
    BATCH,
    D_MODEL,
    N_LATENTS,
    SPARSITIES,
    Batches,
    K,
    assert_same_bits,
    encoded,
    make_config,
    make_trainer,
    name_of,
    random_x,
    tensors_of,
    trained,
    twin_acts,
    twin_loss,
)
from tests.unit.test_sae import make_core

both_steps = pytest.mark.parametrize("way", ["fast", "plain"])

# ---- one step


def test_what_is_left_of_the_decoder_gradient_is_orthogonal_to_each_row() -> None:
    W_dec = normalise_rows_(random_x(9)).requires_grad_()
    before = random_x(9, seed=1)
    W_dec.grad = before.clone()
    remove_radial_gradient_(W_dec)
    torch.testing.assert_close((W_dec.grad * W_dec).sum(dim=1), torch.zeros(9), atol=1e-6, rtol=0)
    removed = before - W_dec.grad
    torch.testing.assert_close(removed, (removed * W_dec).sum(dim=1, keepdim=True) * W_dec, atol=1e-6, rtol=0)


def test_decoder_rows_have_unit_norm_after_every_step() -> None:
    trainer = make_trainer(make_config())
    before = trainer.sae().W_dec
    for _ in trainer.run():
        rows = trainer.sae().W_dec
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(N_LATENTS))
        assert not torch.equal(rows, before)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    config = TrainingConfig(lr=1.0)
    rates = [learning_rate(config, step, n_steps=200) for step in range(200)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert set(rates[4:161]) == {1.0}
    assert rates[180] == pytest.approx(0.5)
    assert rates[199] == pytest.approx(1 / 40)
    assert rates[160:] == sorted(rates[160:], reverse=True)
    assert learning_rate(config, 998, n_steps=10**6) == pytest.approx(0.999)
    assert learning_rate(TrainingConfig(lr=1.0, warmup_steps=0), 0, n_steps=200) == 1.0


def test_clipping_holds_the_gradient_to_its_norm_and_is_counted() -> None:
    _, held = trained(make_config(grad_clip_norm=1e-3))
    _, free = trained(make_config(grad_clip_norm=1e3))
    assert [step.clipped_fraction for step in held] == [1.0] * 12
    assert [step.clipped_fraction for step in free] == [0.0] * 12


@pytest.mark.parametrize("sparsity", SPARSITIES, ids=name_of)
def test_the_core_encoder_stays_bit_for_bit_while_all_else_moves(sparsity: dict[str, str]) -> None:
    core = make_core(D_MODEL, 5)
    trainer = make_trainer(make_config(sae=sparsity), core=core)
    start = trainer.sae()
    list(trainer.run())
    sae = trainer.finish().sae
    assert torch.equal(sae.W_enc[:, :5], core.W_enc)
    assert (sae.W_dec[:5] != start.W_dec[:5]).any(dim=1).all()
    assert (sae.b_enc[:5] != 0).all()
    assert not torch.equal(sae.W_enc[:, 5:], start.W_enc[:, 5:])
    assert not torch.equal(sae.b_dec, start.b_dec)
    assert (sae.n_core, sae.prefix_widths) == (5, [11, 19, N_LATENTS])


def test_the_core_competes_for_the_budget_like_every_latent() -> None:
    loud = make_core(D_MODEL, 5)
    quiet = Core(**{**vars(loud), "W_enc": 1e-4 * loud.W_enc})
    _, with_loud = trained(make_config(), core=loud, n_steps=2)
    _, with_quiet = trained(make_config(), core=quiet, n_steps=2)
    assert with_loud[0].l0 == with_quiet[0].l0 == K
    assert with_loud[0].l0_core > 1
    assert with_quiet[0].l0_core < 0.1


def test_progress_tells_what_the_losses_say() -> None:
    trainer, steps = trained(make_config(sae={"prefix_loss": "mean"}))
    assert [step.step for step in steps] == list(range(1, 13))
    assert steps[-1].n_tokens == 12 * BATCH
    last = steps[-1]
    assert last.l0 == K
    assert last.explained_variance is not None
    assert last.explained_variance_first is not None
    assert last.explained_variance > last.explained_variance_first
    assert last.loss < steps[0].loss
    assert last.lr < 1e-2
    assert trainer.step == trainer.n_steps == 12


def test_a_batch_that_does_not_vary_has_no_explained_variance() -> None:
    trainer = Trainer(make_config(), None, Batches(torch.ones(2 * BATCH, D_MODEL)), seed=0)
    step = next(trainer.run())
    assert step.explained_variance is None
    assert step.explained_variance_first is None


def test_latents_count_as_dead_after_so_many_tokens_and_the_dead_ones_are_revived() -> None:
    x = random_x(60 * BATCH)
    shares = {}
    for aux_coefficient in (0.0, 1.0):
        config = make_config(dead_after_tokens=3 * BATCH, aux_coefficient=aux_coefficient)
        core = make_core(D_MODEL, 5)
        core.W_enc.mul_(1e-3)
        trainer = Trainer(config, core, Batches(x), seed=0)
        with torch.no_grad():
            trainer._parameters["b_enc"][20:] = -1.0
        steps = list(trainer.run())
        assert steps[1].dead_fraction == 0.0
        assert steps[1].aux_loss == 0.0
        assert steps[3].dead_fraction >= 20 / N_LATENTS
        assert steps[3].aux_loss > 0
        shares[aux_coefficient] = steps[-1].dead_fraction
    assert shares[1.0] < shares[0.0] / 2


@both_steps
@pytest.mark.parametrize("sparsity", SPARSITIES, ids=name_of)
def test_training_equals_a_plain_loop_written_out(sparsity: dict[str, str], way: str) -> None:
    config = make_config(
        sae=sparsity, dead_after_tokens=2 * BATCH, grad_clip_norm=0.3, aux_coefficient=0.5, step=way
    )
    trainer = make_trainer(config, core=make_core(D_MODEL, 5))
    n_exempt = 5 if sparsity["core_sparsity"] == "exempt" else 0
    start = trainer.sae()
    plain = {name: tensors_of(start)[name].clone().requires_grad_() for name in ("b_enc", "W_dec", "b_dec")}
    core_W_enc, W_enc = start.W_enc[:, :5], start.W_enc[:, 5:].clone().requires_grad_()
    optimizer = torch.optim.Adam([W_enc, *plain.values()], betas=(0.9, 0.999))
    last_selected = torch.zeros(N_LATENTS)
    n_clipped = 0

    for step, x in enumerate(random_x(12 * BATCH).split(BATCH)):
        parameters = {"W_enc": torch.cat([core_W_enc, W_enc], dim=1), **plain}
        acts = twin_acts(
            encoded(x, parameters), n_exempt=n_exempt, is_dynamic=sparsity.get("noncore_budget") == "dynamic"
        )
        last_selected[(acts > 0).any(dim=0)] = step + 1
        is_dead = step + 1 - last_selected >= 2
        is_dead[:n_exempt] = False
        prefixes, aux = twin_loss(x, parameters, acts, widths=start.prefix_widths, is_dead=is_dead)
        optimizer.zero_grad()
        (prefixes.sum() + 0.5 * aux).backward()
        gradients = [W_enc.grad, *(tensor.grad for tensor in plain.values())]
        for row, gradient in zip(plain["W_dec"].detach(), plain["W_dec"].grad, strict=True):
            gradient -= (gradient @ row) * row
        norm = sum(gradient.square().sum() for gradient in gradients).sqrt()
        for gradient in gradients:
            gradient *= min(1.0, 0.3 / norm.item())
        n_clipped += int(norm > 0.3)
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1.0, (12 - step) / 2.4)
        optimizer.step()
        with torch.no_grad():
            plain["W_dec"] /= plain["W_dec"].norm(dim=1, keepdim=True)

    steps = list(trainer.run())
    assert any(step.aux_loss > 0 for step in steps)
    assert 0 < n_clipped == round(12 * steps[-1].clipped_fraction)
    torch.testing.assert_close(trainer.sae().W_enc[:, 5:], W_enc.detach(), rtol=1e-3, atol=1e-4)
    for name, tensor in plain.items():
        torch.testing.assert_close(tensors_of(trainer.sae())[name], tensor.detach(), rtol=1e-3, atol=1e-4)


# ---- what cannot go on


def test_a_stream_that_ends_early_fails_the_cycle() -> None:
    stream = Batches(random_x(3 * BATCH))
    stream.n_steps = 5
    with pytest.raises(CycleFailed, match="step 3") as caught:
        list(Trainer(make_config(), None, stream, seed=0).run())
    assert caught.value.failure == "dataset_exhausted"


def test_a_stream_without_a_whole_batch_is_refused_at_once() -> None:
    stream = Batches(random_x(BATCH))
    stream.n_steps = 0
    with pytest.raises(CycleFailed) as caught:
        Trainer(make_config(), None, stream, seed=0)
    assert caught.value.failure == "dataset_exhausted"


def test_activations_that_are_not_finite_name_step_and_tensor() -> None:
    x = random_x(4 * BATCH)
    x[2 * BATCH + 3, 1] = torch.nan
    with pytest.raises(CycleFailed) as caught:
        list(Trainer(make_config(), None, Batches(x), seed=0).run())
    assert caught.value.failure == "non_finite"
    assert caught.value.fields == {"step": 2, "tensor": "x"}


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_a_weight_that_is_not_finite_shows_in_the_loss(name: str) -> None:
    trainer = make_trainer(make_config())
    with torch.no_grad():
        trainer._parameters[name][-1] = torch.nan
    with pytest.raises(CycleFailed) as caught:
        list(trainer.run())
    assert caught.value.failure == "non_finite"
    assert caught.value.fields["tensor"] == "loss"


def test_a_gradient_that_overflows_is_named_and_no_weight_moves() -> None:
    trainer = make_trainer(make_config(step="plain"))
    trainer._parameters["W_enc"].register_hook(lambda gradient: gradient * torch.inf)
    before = trainer.sae()
    with pytest.raises(CycleFailed, match=r"W_enc\.grad"):
        next(trainer.run())
    assert_same_bits(trainer.sae(), before)


def test_a_gradient_norm_that_overflows_is_named_on_the_fast_path_and_no_weight_moves() -> None:
    trainer = make_trainer(make_config())
    with torch.no_grad():
        trainer._parameters["W_dec"].mul_(1e25)
        trainer._parameters["W_enc"].mul_(1e-25)
    before = trainer.sae()
    with pytest.raises(CycleFailed, match="norm is not finite"):
        next(trainer.run())
    assert_same_bits(trainer.sae(), before)


# ---- the finished SAE


def test_the_finished_sae_has_a_mean_l0_of_k_on_the_tokens_of_its_threshold() -> None:
    for threshold_tokens, n_used in [(3 * BATCH - 1, 3), (10**6, 12)]:
        trainer, _ = trained(make_config(threshold_tokens=threshold_tokens))
        sae = trainer.finish().sae
        x = random_x(12 * BATCH)[: n_used * BATCH]
        n_active = sum(int((sae.encode(batch) > 0).sum()) for batch in x.split(BATCH))
        assert n_active == K * len(x)
        assert (sae.threshold == sae.threshold[0]).all()


def test_an_sae_is_finished_only_after_its_last_step() -> None:
    trainer = make_trainer(make_config())
    next(trainer.run())
    with pytest.raises(DmsaeError, match="step = 1"):
        trainer.finish()


# ---- same bits


@both_steps
@pytest.mark.parametrize("sparsity", SPARSITIES, ids=name_of)
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(
    sparsity: dict[str, str], way: str
) -> None:
    config = make_config(sae=sparsity, dead_after_tokens=BATCH, step=way)
    core = make_core(D_MODEL, 5)
    one, steps = trained(config, core=core)
    torch.rand(3)
    same, same_steps = trained(config, core=core)
    other, _ = trained(config, core=core, seed=1)
    assert steps == same_steps
    assert_same_bits(one.finish().sae, same.finish().sae)
    assert not torch.equal(one.finish().sae.W_dec, other.finish().sae.W_dec)


@both_steps
@pytest.mark.parametrize("stop", [0, 1, 5, 11, 12])
@pytest.mark.parametrize("sparsity", SPARSITIES, ids=name_of)
def test_stopped_and_resumed_equals_never_stopped(sparsity: dict[str, str], stop: int, way: str) -> None:
    config = make_config(sae=sparsity, dead_after_tokens=2 * BATCH, grad_clip_norm=0.05, step=way)
    core = make_core(D_MODEL, 5)
    whole, steps = trained(config, core=core)
    first = make_trainer(config, core=core)
    run = first.run()
    before = [next(run) for _ in range(stop)]
    state = first.state_dict()
    list(run)

    resumed = make_trainer(config, core=core, seed=99)
    list(resumed.run())
    resumed.load_state_dict(state)
    after = list(resumed.run())

    assert before + after == steps
    assert_same_bits(resumed.finish().sae, whole.finish().sae)
    assert resumed.finish().noncore_budget == whole.finish().noncore_budget
    assert_same_bits(first.finish().sae, whole.finish().sae)
    again = make_trainer(config, core=core)
    again.load_state_dict(state)
    assert list(again.run()) == after


def test_finishing_leaves_trainer_and_stream_as_they_were() -> None:
    trainer, _ = trained(make_config(threshold_tokens=3 * BATCH))
    stream_before, once = trainer._stream.state_dict(), trainer.finish().sae
    assert trainer._stream.state_dict() == stream_before
    assert_same_bits(trainer.finish().sae, once)


# ---- what is learned


def planted(n_tokens: int, *, n_directions: int = 24, d_model: int = 32) -> tuple[Tensor, Tensor]:
    """Sparse sums of unit directions: each is present in one token of eight, with a strength of 1 to 2."""
    generator = torch.Generator().manual_seed(7)
    directions = normalise_rows_(torch.randn(n_directions, d_model, generator=generator))
    present = torch.rand(n_tokens, n_directions, generator=generator) < 1 / 8
    strength = 1 + torch.rand(n_tokens, n_directions, generator=generator)
    x = (present * strength) @ directions
    return x / x.square().sum(dim=1).mean().sqrt(), directions


def test_planted_sparse_directions_are_learned() -> None:
    x, directions = planted(400 * 128)
    config = make_config(sae={"n_latents": 48, "k": 3, "block_widths": [24, 32]}, lr=5e-3)
    trainer = Trainer(config, None, Batches(x, 128), seed=0)
    *_, last = trainer.run()
    sae = trainer.finish().sae
    found = (directions @ sae.W_dec.T).max(dim=1).values
    assert last.explained_variance is not None
    assert last.explained_variance > 0.85
    assert (found > 0.9).float().mean() > 0.8
