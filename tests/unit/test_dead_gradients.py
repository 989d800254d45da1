"""Claims about the dead latents' part by hand: it is what autograd gives over dense matrices, either way."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmsae import dead_gradients
from dmsae.dead_gradients import DeadPart, Unexplained, dead_part
from dmsae.losses import dead_latent_loss
from dmsae.row_step import Weights
from dmsae.row_workers import RowWorkers
from dmsae.sae import normalise_rows_
from tests.trained import random_x

ROUNDING = 1e-5
"""Relative to the largest entry, as the whole step is held to."""
WEIGHT = 0.3


@pytest.fixture(params=["all", "used"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute over all dead latents of a token, or over those that it uses."""
    monkeypatch.setattr(dead_gradients, "MANY", np.inf if request.param == "all" else 0)


def weights_of(n_latents: int, d_model: int, *, seed: int = 0) -> Weights:
    return Weights(
        random_x(n_latents, d_model=d_model, seed=seed + 1),
        0.3 * random_x(1, d_model=n_latents, seed=seed + 2)[0],
        normalise_rows_(random_x(n_latents, d_model=d_model, seed=seed + 3)),
        torch.zeros(d_model),
    )


def by_autograd(batch: Unexplained, weights: Weights, is_dead: Tensor) -> DeadPart:
    W_enc, b_enc, W_dec = (tensor.clone().requires_grad_() for tensor in weights[:3])
    pre_acts = batch.centred @ W_enc.T + b_enc
    loss = dead_latent_loss(batch.residual.neg(), pre_acts, W_dec, is_dead=is_dead)
    gradients = torch.autograd.grad(WEIGHT * loss, [W_enc, b_enc, W_dec], allow_unused=True)
    latents = is_dead.nonzero().squeeze(1)
    return DeadPart(loss.detach(), latents, *(gradient[latents] for gradient in gradients))


def without_radial(gradient: Tensor, rows: Tensor) -> Tensor:
    return gradient - (gradient * rows).sum(dim=1, keepdim=True) * rows


def assert_equal_parts(made: DeadPart, expected: DeadPart, weights: Weights) -> None:
    assert torch.equal(made.latents, expected.latents)
    torch.testing.assert_close(made.loss, expected.loss, rtol=ROUNDING, atol=0)
    rows = weights.W_dec[expected.latents]
    pairs = [
        (made.W_enc, expected.W_enc),
        (made.b_enc, expected.b_enc),
        (without_radial(made.W_dec, rows), without_radial(expected.W_dec, rows)),
    ]
    largest = max(expected.W_dec.abs().max().item(), expected.W_enc.abs().max().item())
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=ROUNDING * largest)


@settings(deadline=None, max_examples=60)
@given(
    n_tokens=st.integers(2, 20),
    d_model=st.integers(2, 24),
    n_latents=st.integers(1, 70),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    is_used_only=st.booleans(),
    seed=st.integers(0, 500),
)
def test_loss_and_gradients_are_those_of_autograd(n_tokens, d_model, n_latents, share, is_used_only, seed):
    weights = weights_of(n_latents, d_model, seed=seed)
    batch = Unexplained(
        random_x(n_tokens, d_model=d_model, seed=seed), random_x(n_tokens, d_model=d_model, seed=seed + 9)
    )
    is_dead = torch.rand(n_latents, generator=torch.Generator().manual_seed(seed)) < share
    is_dead[seed % n_latents] = True  # one at least
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dead_gradients, "MANY", 0 if is_used_only else np.inf)
        patch.setattr(dead_gradients, "MOST_VALUES", 200)
        made = dead_part(batch, weights, is_dead=is_dead, weight=WEIGHT, workers=RowWorkers())
    assert_equal_parts(made, by_autograd(batch, weights, is_dead), weights)


def test_of_equal_pre_activations_those_of_lower_latents_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_gradients, "MANY", 0)
    weights = weights_of(40, 8)
    weights.W_enc.zero_()
    weights.b_enc.copy_(torch.tensor([1.0, 2.0] * 20))
    batch = Unexplained(random_x(6, d_model=8), random_x(6, d_model=8, seed=1))
    made = dead_part(
        batch, weights, is_dead=torch.ones(40, dtype=torch.bool), weight=WEIGHT, workers=RowWorkers()
    )
    assert made.b_enc.nonzero().squeeze(1).tolist() == [1, 3, 5, 7]
    first = torch.zeros(40, dtype=torch.bool)
    first[[1, 3, 5, 7]] = True
    expected = by_autograd(batch, weights, first)
    torch.testing.assert_close(made.loss, expected.loss)
    torch.testing.assert_close(made.W_enc[first], expected.W_enc)


@pytest.mark.usefixtures("way")
def test_nothing_is_asked_of_latents_where_none_is_dead_or_nothing_is_left() -> None:
    weights, x = weights_of(30, 6), random_x(8, d_model=6)
    none, every = torch.zeros(30, dtype=torch.bool), torch.ones(30, dtype=torch.bool)
    for residual, is_dead in ((x, none), (torch.zeros_like(x), every), (torch.ones_like(x), every)):
        made = dead_part(
            Unexplained(x, residual), weights, is_dead=is_dead, weight=WEIGHT, workers=RowWorkers()
        )
        assert made.loss == 0
        assert [len(part) for part in made[1:]] == [0, 0, 0, 0]


@pytest.mark.usefixtures("way")
def test_a_dead_latent_that_no_token_uses_gets_no_gradient() -> None:
    weights = weights_of(30, 6)
    weights.b_enc[4] = -100.0
    batch = Unexplained(random_x(8, d_model=6), random_x(8, d_model=6, seed=1))
    made = dead_part(
        batch, weights, is_dead=torch.ones(30, dtype=torch.bool), weight=WEIGHT, workers=RowWorkers()
    )
    assert made.b_enc[4] == 0
    assert not made.W_enc[4].any()
    assert not made.W_dec[4].any()


def test_threads_decide_no_bit_over_used_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_gradients, "MANY", 0)
    weights, n_threads = weights_of(300, 16), torch.get_num_threads()
    batch = Unexplained(random_x(50, d_model=16), random_x(50, d_model=16, seed=1))
    parts = []
    for n in (1, 3):
        torch.set_num_threads(n)
        is_dead = torch.ones(300, dtype=torch.bool)
        parts.append(dead_part(batch, weights, is_dead=is_dead, weight=WEIGHT, workers=RowWorkers()))
    torch.set_num_threads(n_threads)
    for one, other in zip(*parts, strict=True):
        assert torch.equal(one, other)


def test_where_not_all_is_a_number_no_place_outside_is_touched() -> None:
    rows = np.array([[1.0, np.nan, 3.0, 2.0], [np.nan] * 4, [np.inf, 1.0, -np.inf, 0.0]], np.float32)
    n_each, latents, acts = dead_gradients._largest_of_rows(rows, 2)
    assert n_each.sum() == len(latents) == len(acts)
    assert ((latents >= 0) & (latents < 4)).all()
    assert latents[-2:].tolist() == [0, 1]
