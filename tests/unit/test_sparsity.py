"""Claims about which latents are active: the budget of a batch, an exempt core, the inference threshold."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dmsae.errors import CycleFailed
from dmsae.sae import MatryoshkaSae
from dmsae.sparsity import Sparsity, batch_topk, calibrate
from tests.trained import BATCH, EXEMPT, N_LATENTS, K, make_config, name_of, random_x
from tests.unit.test_sae import rows


def kept(acts: Tensor, budget: int) -> Tensor:
    return torch.where(batch_topk(acts, budget), acts, 0.0)


def kept_by_plain_python(values: list[float], budget: int) -> list[float]:
    order = sorted((i for i, value in enumerate(values) if value > 0), key=lambda i: (-values[i], i))
    kept = set(order[: max(budget, 0)])
    return [value if i in kept else 0.0 for i, value in enumerate(values)]


@given(
    values=st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.25, 0.5, 1.0, 3.0]), min_size=1, max_size=40),
    n_rows=st.sampled_from([1, 2, 3]),
    budget=st.integers(0, 60),
)
def test_batch_topk_keeps_what_a_plain_sort_keeps_with_many_ties(
    values: list[float], n_rows: int, budget: int
) -> None:
    acts = torch.tensor(values * n_rows).view(n_rows, -1)
    expected = torch.tensor(kept_by_plain_python(values * n_rows, budget)).view(n_rows, -1)
    assert torch.equal(kept(acts, budget), expected)


def test_batch_topk_spends_the_budget_over_the_whole_batch_and_not_per_token() -> None:
    acts = rows([5.0, 4.0, 3.0], [1.0, 2.0, 0.5])
    assert torch.equal(kept(acts, 3), rows([5.0, 4.0, 3.0], [0.0, 0.0, 0.0]))


def test_equal_values_at_the_border_are_kept_by_lower_flat_index() -> None:
    assert torch.equal(kept(torch.ones(2, 3), 4), rows([1.0, 1.0, 1.0], [1.0, 0.0, 0.0]))


def exempt(n_exempt: int, *, k: int = 2, is_dynamic: bool = True) -> Sparsity:
    return Sparsity(k=k, n_exempt=n_exempt, is_dynamic=is_dynamic)


def test_gradients_flow_to_kept_values_alone() -> None:
    acts = rows([5.0, 4.0], [-1.0, 6.0]).requires_grad_()
    exempt(0, k=1).sparsify(acts).latent_acts.sum().backward()
    assert torch.equal(acts.grad, rows([1.0, 0.0], [0.0, 1.0]))


@pytest.mark.parametrize("n_exempt", [0, 1, 2])
def test_a_nan_among_the_activations_is_not_hidden(n_exempt: int) -> None:
    acts = rows([1.0, float("nan"), 1.0], [2.0, 3.0, 1.0])
    assert exempt(n_exempt, k=1).sparsify(acts).latent_acts.isnan().any()


# ---- an exempt core: its first two latents here

ONE_ACTIVE = rows([0.1, -3.0, 5.0, 4.0, 1.0], [-1.0, -0.1, 3.0, 2.0, 6.0])
THREE_ACTIVE = rows([0.1, 0.2, 5.0, 4.0, 1.0], [0.3, -0.1, 3.0, 2.0, 6.0])


def test_what_an_exempt_core_uses_is_taken_off_the_dynamic_budget_of_the_others() -> None:
    sparse = exempt(2).sparsify(ONE_ACTIVE)
    assert sparse.budget == 2 * 2 - 1
    assert torch.equal(sparse.latent_acts, rows([0.1, 0.0, 5.0, 4.0, 0.0], [0.0, 0.0, 0.0, 0.0, 6.0]))


def test_the_fixed_budget_of_the_others_is_k_whatever_an_exempt_core_uses() -> None:
    for pre_acts in (ONE_ACTIVE, THREE_ACTIVE):
        sparse = exempt(2, is_dynamic=False).sparsify(pre_acts)
        assert sparse.budget == 4
        assert sparse.latent_acts[:, 2:].gt(0).tolist() == [[True, True, False], [True, False, True]]


def test_the_dynamic_budget_never_falls_below_its_floor() -> None:
    sparse = exempt(2).sparsify(THREE_ACTIVE)
    assert sparse.budget == 2  # k_min = 1 a token, where k - L0_core = 1/2
    assert torch.equal(sparse.latent_acts, rows([0.1, 0.2, 5.0, 0.0, 0.0], [0.3, 0.0, 0.0, 0.0, 6.0]))


def test_the_floor_of_a_token_is_a_quarter_of_k_and_at_least_one() -> None:
    assert [exempt(1, k=k).k_min for k in (1, 4, 6, 320)] == [1.0, 1.0, 1.5, 80.0]


@given(k=st.integers(1, 40), n_tokens=st.integers(1, 60), data=st.data(), is_dynamic=st.booleans())
def test_budgets_are_exact_counts_rounded_once(k, n_tokens, data, is_dynamic):
    n_active = data.draw(st.integers(0, 2 * k * n_tokens))
    k_nc = max(Fraction(k, 4), 1, k - Fraction(n_active, n_tokens)) if is_dynamic else Fraction(k)
    budget = exempt(1, k=k, is_dynamic=is_dynamic).budget(n_active, n_tokens=n_tokens)
    assert budget == round(k_nc * n_tokens)
    assert n_tokens <= budget <= k * n_tokens


@given(n_exempt=st.integers(0, 12), is_dynamic=st.booleans(), seed=st.integers(0, 50))
def test_an_exempt_core_keeps_relu_and_the_others_never_exceed_their_budget(n_exempt, is_dynamic, seed):
    pre_acts = random_x(8, d_model=12, seed=seed)
    sparse = exempt(n_exempt, is_dynamic=is_dynamic).sparsify(pre_acts)
    assert torch.equal(sparse.latent_acts[:, :n_exempt], pre_acts[:, :n_exempt].relu())
    others = sparse.latent_acts[:, n_exempt:]
    assert (others > 0).sum() == min(sparse.budget, (pre_acts[:, n_exempt:] > 0).sum())


@pytest.mark.parametrize("settings", EXEMPT, ids=name_of)
def test_without_a_core_exempt_is_plain_batch_topk_bit_for_bit(settings: dict[str, str]) -> None:
    pre_acts = random_x(BATCH, d_model=N_LATENTS)
    plain, other = (
        Sparsity.of(make_config(sae=sae).sae, n_core=0).sparsify(pre_acts) for sae in ({}, settings)
    )
    assert plain.budget == other.budget == K * BATCH
    assert torch.equal(plain.latent_acts, other.latent_acts)


# ---- the inference threshold


def threshold_of(sae: MatryoshkaSae, x: Tensor, k: int, *, batch_tokens: int = 16) -> Tensor:
    sparsity = exempt(sae.n_core, k=k)
    return calibrate(sae, x.split(batch_tokens), sparsity, n_tokens=len(x)).threshold


def identity_sae(n_latents: int, *, n_core: int = 0) -> MatryoshkaSae:
    eye, zero = torch.eye(n_latents), torch.zeros(n_latents)
    return MatryoshkaSae(
        W_enc=eye,
        b_enc=zero,
        W_dec=eye,
        b_dec=zero,
        threshold=zero,
        prefix_widths=[n_latents],
        n_core=n_core,
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


def test_a_threshold_needs_as_many_tokens_as_were_promised() -> None:
    with pytest.raises(CycleFailed, match="n_tokens = 4"):
        calibrate(identity_sae(3), [torch.ones(4, 3)], exempt(0), n_tokens=5)


@pytest.mark.parametrize(("pre_acts", "n_kept"), [(ONE_ACTIVE, 3), (THREE_ACTIVE, 2)])
def test_the_threshold_of_an_exempt_core_is_zero_and_that_of_the_others_takes_what_is_left(
    pre_acts: Tensor, n_kept: int
) -> None:
    sae = identity_sae(5, n_core=2)
    for batch_tokens in (1, 2):
        found = calibrate(sae, pre_acts.split(batch_tokens), exempt(2), n_tokens=2)
        assert found.threshold[:2].tolist() == [0.0, 0.0]
        assert (found.n_exempt_active, found.budget) == (int((pre_acts[:, :2] > 0).sum()), n_kept)
        assert (found.l0_exempt, found.l0_others) == (found.n_exempt_active / 2, n_kept / 2)
        acts = replace(sae, threshold=found.threshold).encode(pre_acts)
        assert torch.equal(acts, exempt(2).sparsify(pre_acts).latent_acts)


def test_the_budget_of_a_threshold_is_that_of_all_its_tokens_and_not_the_mean_over_batches() -> None:
    pre_acts = rows([1.0, 1.0, 5.0, 4.0, 3.0], [-1.0, -1.0, 2.0, 1.5, 1.0])
    found = calibrate(identity_sae(5, n_core=2), pre_acts.split(1), exempt(2), n_tokens=2)
    # token by token: max(1, 2 - 2) + max(1, 2 - 0) = 3; together 2 * 2 - 2 = 2
    assert found.budget == 2
    assert (pre_acts[:, 2:] > found.threshold[2:]).sum() == 2
