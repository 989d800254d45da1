"""Claims about what training minimises: values and gradients, and which latents count as dead."""

import pytest
import torch

from dmsae.losses import Losses, dead_latent_loss, reconstruction_losses, total_loss
from dmsae.sae import decode_prefixes
from dmsae.sparsity import Sparsity
from tests.trained import BATCH, D_MODEL, N_LATENTS, K, encoded, random_x, twin_acts, twin_loss


@pytest.mark.parametrize("n_dead", [1, 6, 15])
@pytest.mark.parametrize(("n_exempt", "is_dynamic"), [(0, True), (9, True), (9, False)])
def test_losses_and_gradients_equal_those_of_a_plain_twin(
    n_dead: int, n_exempt: int, is_dynamic: bool
) -> None:
    generator = torch.Generator().manual_seed(2)
    plain = {
        "W_enc": torch.randn(D_MODEL, N_LATENTS, generator=generator, dtype=torch.float64),
        "b_enc": 0.1 * torch.randn(N_LATENTS, generator=generator, dtype=torch.float64),
        "W_dec": torch.randn(N_LATENTS, D_MODEL, generator=generator, dtype=torch.float64),
        "b_dec": 0.1 * torch.randn(D_MODEL, generator=generator, dtype=torch.float64),
    }
    x, widths = random_x(BATCH, seed=3).double(), [15, 23, N_LATENTS]
    is_dead = torch.zeros(N_LATENTS, dtype=torch.bool)
    is_dead[n_exempt + torch.randperm(N_LATENTS - n_exempt, generator=generator)[:n_dead]] = True
    fast = {name: tensor.clone().requires_grad_() for name, tensor in plain.items()}
    slow = {name: tensor.clone().requires_grad_() for name, tensor in plain.items()}

    pre_acts = encoded(x, fast)
    acts, _ = Sparsity(k=K, n_exempt=n_exempt, is_dynamic=is_dynamic).sparsify(pre_acts)
    x_hats = decode_prefixes(acts, fast["W_dec"], fast["b_dec"], prefix_widths=widths)
    dead = dead_latent_loss(x - x_hats[-1], pre_acts, fast["W_dec"], is_dead=is_dead)
    losses = Losses(reconstruction_losses(x, x_hats), dead)
    total_loss(losses, aux_coefficient=1 / 32, is_mean=False).backward()
    slow_acts = twin_acts(encoded(x, slow), n_exempt=n_exempt, is_dynamic=is_dynamic)
    prefixes, aux = twin_loss(x, slow, slow_acts, widths=widths, is_dead=is_dead)
    (prefixes.sum() + aux / 32).backward()

    assert torch.equal(acts, slow_acts)
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
