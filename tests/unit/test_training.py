"""Claims about training: losses and gradients, what is frozen, what the threshold gives, what is learned."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dmsae.config import DistillationConfig, TrainingConfig
from dmsae.errors import CycleFailed, DmsaeError
from dmsae.losses import Losses, dead_latent_loss, reconstruction_losses, total_loss
from dmsae.sae import Core, MatryoshkaSae, batch_topk, decode_prefixes, normalise_rows_
from dmsae.training import (
    Progress,
    Trainer,
    inference_threshold,
    learning_rate,
    remove_radial_gradient_,
)
from tests.unit.test_sae import make_core

D_MODEL, N_LATENTS, K, BATCH = 12, 40, 4, 32


class Batches:
    """A stream over batches that are all in memory."""

    def __init__(self, x: Tensor, batch_tokens: int = BATCH) -> None:
        self.batches = x.split(batch_tokens)
        self.n_steps = len(self.batches)
        self.step = 0

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if self.step >= len(self.batches):
            raise StopIteration
        self.step += 1
        return self.batches[self.step - 1]

    def seek(self, step: int, /) -> None:
        self.step = step

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.step = state["step"]


def make_config(*, sae: dict[str, Any] | None = None, **training: Any) -> DistillationConfig:
    return DistillationConfig.model_validate(
        {
            "n_cycles": 1,
            "model": {"source": "builtin", "name": "smollm2-135m"},
            "data": {"text": {"source": "builtin", "name": "python-topics"}},
            "activations": {"layer": 0},
            "sae": {"n_latents": N_LATENTS, "k": K, "block_widths": [6, 14], **(sae or {})},
            "training": {"batch_tokens": BATCH, "lr": 1e-2, **training},
        }
    )


def random_x(n_tokens: int, *, d_model: int = D_MODEL, seed: int = 0) -> Tensor:
    return torch.randn(n_tokens, d_model, generator=torch.Generator().manual_seed(seed)) / d_model**0.5


def make_trainer(
    config: DistillationConfig, *, core: Core | None = None, n_steps: int = 12, seed: int = 0
) -> Trainer:
    return Trainer(config, core, Batches(random_x(n_steps * BATCH)), seed=seed)


def trained(config: DistillationConfig, **arguments: Any) -> tuple[Trainer, list[Progress]]:
    trainer = make_trainer(config, **arguments)
    return trainer, list(trainer.run())


def tensors_of(sae: MatryoshkaSae) -> dict[str, Tensor]:
    return {name: value for name, value in vars(sae).items() if isinstance(value, Tensor)}


def assert_same_bits(one: MatryoshkaSae, other: MatryoshkaSae) -> None:
    for name, tensor in tensors_of(one).items():
        assert torch.equal(tensor, tensors_of(other)[name]), name


# ---- losses against a slow plain twin


def twin_loss(
    x: Tensor, parameters: dict[str, Tensor], *, k: int, widths: list[int], is_dead: Tensor
) -> tuple[Tensor, Tensor]:
    """One full dense decode per prefix, token by token where it matters, in float64."""
    W_enc, b_enc, W_dec, b_dec = (parameters[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    pre_acts = (x - b_dec) @ W_enc + b_enc
    acts = torch.relu(pre_acts)
    border = acts.detach().flatten().sort(descending=True).values[k * len(x) - 1]
    acts = acts * (acts.detach() >= border)
    prefixes = []
    for width in widths:
        mask = (torch.arange(acts.shape[1]) < width).to(acts.dtype)
        x_hat = (acts * mask) @ W_dec + b_dec
        prefixes.append(
            sum(((row - row_hat) ** 2).sum() for row, row_hat in zip(x, x_hat, strict=True)) / len(x)
        )
    residual = (x - x_hat).detach()
    missed, spread = torch.zeros((), dtype=x.dtype), torch.zeros((), dtype=x.dtype)
    for t in range(len(x)):
        dead = sorted(is_dead.nonzero().flatten().tolist(), key=lambda i: -pre_acts[t, i].item())
        r_hat = sum(pre_acts[t, i] * W_dec[i] for i in dead[: x.shape[1] // 2])
        missed = missed + ((residual[t] - r_hat) ** 2).sum() / len(x)
        spread = spread + ((residual[t] - residual.mean(dim=0)) ** 2).sum() / len(x)
    return torch.stack(prefixes), missed / spread


@pytest.mark.parametrize("n_dead", [1, 6, 15])
def test_losses_and_gradients_equal_those_of_a_plain_twin(n_dead: int) -> None:
    generator = torch.Generator().manual_seed(2)
    plain = {
        "W_enc": torch.randn(D_MODEL, N_LATENTS, generator=generator, dtype=torch.float64),
        "b_enc": 0.1 * torch.randn(N_LATENTS, generator=generator, dtype=torch.float64),
        "W_dec": torch.randn(N_LATENTS, D_MODEL, generator=generator, dtype=torch.float64),
        "b_dec": 0.1 * torch.randn(D_MODEL, generator=generator, dtype=torch.float64),
    }
    x, widths = random_x(BATCH, seed=3).double(), [6, 14, N_LATENTS]
    is_dead = torch.zeros(N_LATENTS, dtype=torch.bool)
    is_dead[torch.randperm(N_LATENTS, generator=generator)[:n_dead]] = True
    fast = {name: tensor.clone().requires_grad_() for name, tensor in plain.items()}
    slow = {name: tensor.clone().requires_grad_() for name, tensor in plain.items()}

    pre_acts = (x - fast["b_dec"]) @ fast["W_enc"] + fast["b_enc"]
    x_hats = decode_prefixes(
        batch_topk(pre_acts, K * BATCH), fast["W_dec"], fast["b_dec"], prefix_widths=widths
    )
    dead = dead_latent_loss(x - x_hats[-1], pre_acts, fast["W_dec"], is_dead=is_dead)
    losses = Losses(reconstruction_losses(x, x_hats), dead)
    total_loss(losses, aux_coefficient=1 / 32, is_mean=False).backward()
    prefixes, aux = twin_loss(x, slow, k=K, widths=widths, is_dead=is_dead)
    (prefixes.sum() + aux / 32).backward()

    torch.testing.assert_close(losses.prefixes, prefixes)
    torch.testing.assert_close(losses.dead, aux)
    for name, parameter in fast.items():
        torch.testing.assert_close(parameter.grad, slow[name].grad, msg=name)


def test_the_mean_of_the_prefix_losses_is_the_whole_sum_divided_by_their_number() -> None:
    losses = Losses(torch.tensor([3.0, 2.0, 1.0]), torch.tensor(0.5))
    assert total_loss(losses, aux_coefficient=2.0, is_mean=False).item() == 7.0
    assert total_loss(losses, aux_coefficient=2.0, is_mean=True).item() == pytest.approx(7 / 3)


def test_with_one_prefix_the_loss_is_that_of_a_plain_batchtopk_sae() -> None:
    acts, W_dec, b_dec = random_x(5, d_model=8), random_x(8, d_model=3), random_x(1, d_model=3)[0]
    x = random_x(5, d_model=3, seed=1)
    losses = reconstruction_losses(x, decode_prefixes(acts, W_dec, b_dec, prefix_widths=[8]))
    plain = (x - (acts @ W_dec + b_dec)).square().sum(dim=1).mean()
    torch.testing.assert_close(losses.sum(), plain)


def test_losses_of_hand_set_reconstructions_are_known() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    losses = reconstruction_losses(x, [torch.zeros(2, 2), x - 1.0])
    assert losses.tolist() == [(1 + 4 + 9) / 2, 2.0]


ONE_DEAD = torch.tensor([False, True])


def test_the_dead_latent_loss_is_zero_without_dead_latents_or_without_a_varying_residual() -> None:
    pre_acts, W_dec = random_x(4, d_model=2), torch.eye(2)
    for residual, is_dead in [
        (random_x(4, d_model=2, seed=1), torch.tensor([False, False])),
        (torch.zeros(4, 2), ONE_DEAD),
        (torch.ones(4, 2), ONE_DEAD),
        (random_x(1, d_model=2), ONE_DEAD),
    ]:
        assert dead_latent_loss(residual, pre_acts[: len(residual)], W_dec, is_dead=is_dead).item() == 0.0


def test_the_dead_latent_loss_is_one_for_a_reconstruction_of_zero_around_a_zero_mean() -> None:
    residual = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert dead_latent_loss(residual, torch.zeros(2, 2), torch.eye(2), is_dead=ONE_DEAD).item() == 1.0
    explained = dead_latent_loss(residual.flip(1), residual.flip(1), torch.eye(2), is_dead=ONE_DEAD)
    assert explained.item() == 0.0


def test_a_dead_latent_gets_a_gradient_though_its_pre_activation_is_negative() -> None:
    pre_acts = torch.tensor([[0.5, -1.0], [0.5, -2.0]]).requires_grad_()
    W_dec = torch.eye(2).requires_grad_()
    residual = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).requires_grad_()
    dead_latent_loss(residual, pre_acts, W_dec, is_dead=ONE_DEAD).backward()
    assert (pre_acts.grad[:, 1] != 0).all()
    assert not pre_acts.grad[:, 0].any()
    assert not W_dec.grad[0].any()
    assert residual.grad is None


def test_at_most_half_of_d_model_dead_latents_reconstruct_a_token() -> None:
    residual = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    pre_acts = torch.tensor([[0.9, 0.8], [-0.7, -0.6]]).requires_grad_()
    loss = dead_latent_loss(residual, pre_acts, torch.eye(2), is_dead=torch.tensor([True, True]))
    loss.backward()
    assert pre_acts.grad.ne(0).tolist() == [[True, False], [False, True]]


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


def test_the_core_encoder_stays_bit_for_bit_while_all_else_moves() -> None:
    core = make_core(D_MODEL, 5)
    trainer = make_trainer(make_config(), core=core)
    start = trainer.sae()
    list(trainer.run())
    sae = trainer.finish()
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


def test_training_equals_a_plain_loop_written_out() -> None:
    config = make_config(dead_after_tokens=2 * BATCH, grad_clip_norm=0.3, aux_coefficient=0.5)
    trainer = make_trainer(config, core=make_core(D_MODEL, 5))
    start = trainer.sae()
    plain = {name: tensors_of(start)[name].clone().requires_grad_() for name in ("b_enc", "W_dec", "b_dec")}
    core_W_enc, W_enc = start.W_enc[:, :5], start.W_enc[:, 5:].clone().requires_grad_()
    optimizer = torch.optim.Adam([W_enc, *plain.values()], betas=(0.9, 0.999))
    last_selected = torch.zeros(N_LATENTS)
    n_clipped = 0

    for step, x in enumerate(random_x(12 * BATCH).split(BATCH)):
        parameters = {"W_enc": torch.cat([core_W_enc, W_enc], dim=1), **plain}
        with torch.no_grad():
            pre_acts = (x - plain["b_dec"]) @ parameters["W_enc"] + plain["b_enc"]
            border = pre_acts.flatten().sort(descending=True).values[K * BATCH - 1]
        last_selected[(pre_acts >= border).any(dim=0)] = step + 1
        is_dead = step + 1 - last_selected >= 2
        prefixes, aux = twin_loss(x, parameters, k=K, widths=start.prefix_widths, is_dead=is_dead)
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
    trainer = make_trainer(make_config())
    trainer._parameters["W_enc"].register_hook(lambda gradient: gradient * torch.inf)
    before = trainer.sae()
    with pytest.raises(CycleFailed, match=r"W_enc\.grad"):
        next(trainer.run())
    assert_same_bits(trainer.sae(), before)


# ---- the inference threshold


def threshold_of(sae: MatryoshkaSae, x: Tensor, k: int, *, batch_tokens: int = 16) -> Tensor:
    return inference_threshold(sae, x.split(batch_tokens), k, n_tokens=len(x))


def identity_sae(n_latents: int) -> MatryoshkaSae:
    eye, zero = torch.eye(n_latents), torch.zeros(n_latents)
    return MatryoshkaSae(
        W_enc=eye, b_enc=zero, W_dec=eye, b_dec=zero, threshold=zero, prefix_widths=[n_latents], n_core=0
    )


def test_a_hand_set_threshold_lies_just_below_the_last_activation_that_fits() -> None:
    sae = identity_sae(3)
    x = torch.tensor([[5.0, 4.0, -1.0], [3.0, 2.0, 1.0]])
    threshold = threshold_of(sae, x, 2)
    assert threshold.shape == (3,)
    assert (threshold < 2.0).all()
    torch.testing.assert_close(threshold, torch.full((3,), 2.0))


def test_ties_at_the_border_leave_the_mean_l0_just_below_k() -> None:
    x = torch.tensor([[5.0, 2.0, -1.0], [2.0, 2.0, 1.0]])
    assert torch.equal(threshold_of(identity_sae(3), x, 1), torch.full((3,), 2.0))


def test_ties_that_all_fit_are_all_kept() -> None:
    x = torch.tensor([[2.0, 2.0, -1.0], [2.0, 2.0, 1.0]])
    assert (threshold_of(identity_sae(3), x, 2) < 2.0).all()


def test_with_too_few_positive_activations_the_threshold_is_zero() -> None:
    x = torch.tensor([[5.0, -2.0, -1.0], [-2.0, -2.0, 1.0]])
    assert not threshold_of(identity_sae(3), x, 2).any()
    assert (threshold_of(identity_sae(3), x, 1) < 1.0).all()


@pytest.mark.parametrize("batch_tokens", [1, 7, 64, 500])
def test_merging_batch_by_batch_finds_the_same_value_as_one_sort(batch_tokens: int) -> None:
    x = random_x(500, d_model=30).round(decimals=2)
    ordered = x.flatten().sort(descending=True).values
    threshold = threshold_of(identity_sae(30), x, 3, batch_tokens=batch_tokens)[0]
    at_most = (ordered > threshold).sum()
    assert at_most <= 1500 < at_most + (ordered == ordered[1499]).sum() + 1
    assert (ordered >= ordered[1499]).sum() > 1500
    assert threshold == ordered[1499]


def test_the_finished_sae_has_a_mean_l0_of_k_on_the_tokens_of_its_threshold() -> None:
    for threshold_tokens, n_used in [(3 * BATCH - 1, 3), (10**6, 12)]:
        trainer, _ = trained(make_config(threshold_tokens=threshold_tokens))
        sae = trainer.finish()
        x = random_x(12 * BATCH)[: n_used * BATCH]
        n_active = sum(int((sae.encode(batch) > 0).sum()) for batch in x.split(BATCH))
        assert n_active == K * len(x)
        assert (sae.threshold == sae.threshold[0]).all()


def test_a_threshold_needs_as_many_tokens_as_were_promised() -> None:
    with pytest.raises(CycleFailed, match="n_tokens = 4"):
        inference_threshold(identity_sae(3), [torch.ones(4, 3)], 1, n_tokens=5)


def test_an_sae_is_finished_only_after_its_last_step() -> None:
    trainer = make_trainer(make_config())
    next(trainer.run())
    with pytest.raises(DmsaeError, match="step = 1"):
        trainer.finish()


# ---- same bits


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    config, core = make_config(dead_after_tokens=BATCH), make_core(D_MODEL, 5)
    one, steps = trained(config, core=core)
    torch.rand(3)
    same, same_steps = trained(config, core=core)
    other, _ = trained(config, core=core, seed=1)
    assert steps == same_steps
    assert_same_bits(one.finish(), same.finish())
    assert not torch.equal(one.finish().W_dec, other.finish().W_dec)


@pytest.mark.parametrize("stop", [0, 1, 5, 11, 12])
def test_stopped_and_resumed_equals_never_stopped(stop: int) -> None:
    config, core = make_config(dead_after_tokens=2 * BATCH, grad_clip_norm=0.05), make_core(D_MODEL, 5)
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
    assert_same_bits(resumed.finish(), whole.finish())
    assert_same_bits(first.finish(), whole.finish())
    again = make_trainer(config, core=core)
    again.load_state_dict(state)
    assert list(again.run()) == after


def test_finishing_leaves_trainer_and_stream_as_they_were() -> None:
    trainer, _ = trained(make_config(threshold_tokens=3 * BATCH))
    stream_before, once = trainer._stream.state_dict(), trainer.finish()
    assert trainer._stream.state_dict() == stream_before
    assert_same_bits(trainer.finish(), once)


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
    sae = trainer.finish()
    found = (directions @ sae.W_dec.T).max(dim=1).values
    assert last.explained_variance is not None
    assert last.explained_variance > 0.85
    assert (found > 0.9).float().mean() > 0.8
