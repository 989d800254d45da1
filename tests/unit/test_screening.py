"""Claims about finding the largest pre-activations: the bound holds, and nothing but exact values decides."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmsae import estimates as estimates_module
from dmsae.estimates import Estimator, has_fast_int8
from dmsae.row_workers import RowWorkers
from dmsae.screening import Found, Screen
from dmsae.sparsity import batch_topk
from tests.trained import random_x

KINDS = [True, False]
both_kinds = pytest.mark.parametrize("is_int8", KINDS, ids=["int8", "float32"])


def screen(*, is_int8: bool) -> Screen:
    return Screen(RowWorkers(), is_int8=is_int8)


def exact(x: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """All pre-activations, in float64."""
    return x.double() @ rows.double().T + bias.double()


def bounds_of(x: Tensor, rows: Tensor, bias: Tensor, *, is_int8: bool) -> Tensor:
    """What no pre-activation can exceed, written out of its parts."""
    made = Estimator(RowWorkers(), is_int8=is_int8).estimate(x, rows, bias)
    assert made.is_finite()
    estimated = torch.from_numpy(made.product(0, len(rows)).astype(np.float64))
    (scale, norm, error), (row_scale, row_norm, row_error) = (
        [torch.from_numpy(part).double() for part in measured] for measured in (made.of_tokens, made.of_rows)
    )
    slack = error[:, None] * row_norm + norm[:, None] * row_error
    return torch.from_numpy(made.bias).double() + estimated * scale[:, None] * row_scale + slack


HARD = {
    "plain": lambda x: x,
    "huge": lambda x: 1e12 * x,
    "tiny": lambda x: 1e-25 * x,
    "zeros": lambda x: 0 * x,
    "one large coordinate": lambda x: x + 1e4 * torch.eye(x.shape[1])[0],
    "rows of all sizes": lambda x: x * torch.logspace(-12, 12, len(x))[:, None],
    "columns of all sizes": lambda x: x * torch.logspace(-6, 6, x.shape[1]),
    "all but one zero": lambda x: x * torch.eye(x.shape[1])[1],
    "on the steps of int8": lambda x: (x * 127).round() / 127,
    "between the steps of int8": lambda x: ((x * 127).round() + 0.5) / 127,
}


@both_kinds
@pytest.mark.parametrize("of_rows", HARD)
@pytest.mark.parametrize("of_x", HARD)
def test_no_pre_activation_exceeds_its_bound(of_x: str, of_rows: str, is_int8: bool) -> None:
    x, rows = HARD[of_x](random_x(9, d_model=33)), HARD[of_rows](random_x(14, d_model=33, seed=1))
    bias = 0.1 * random_x(1, d_model=14)[0]
    values = exact(x, rows, bias)
    assert (bounds_of(x, rows, bias, is_int8=is_int8) >= values).all()
    assert torch.isfinite(values).all()


@both_kinds
def test_the_bound_is_close_enough_to_spare_most_of_the_work(is_int8: bool) -> None:
    x, rows, bias = random_x(64, d_model=256), random_x(512, d_model=256, seed=1), torch.zeros(512)
    slack = bounds_of(x, rows, bias, is_int8=is_int8) - exact(x, rows, bias)
    spread = exact(x, rows, bias).std()
    assert slack.max() < (1.0 if is_int8 else 0.01) * spread


def test_a_coordinate_that_is_large_everywhere_leaves_the_others_their_digits() -> None:
    x, rows, bias = random_x(64, d_model=256), random_x(512, d_model=256, seed=1), torch.zeros(512)
    loud = torch.ones(256)
    loud[3] = 100.0
    slack = bounds_of(x * loud, rows / loud, bias, is_int8=True) - exact(x, rows, bias)
    assert slack.max() < 1.0 * exact(x, rows, bias).std()


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Small whole numbers: exact in float32, so that ties are ties however products are summed."""
    n_tokens, n_latents, d_model = draw(st.tuples(st.integers(1, 6), st.integers(1, 30), st.integers(2, 9)))
    numbers = st.integers(-3, 3)

    def tensor(*shape: int) -> Tensor:
        n = int(np.prod(shape))
        return torch.tensor(draw(st.lists(numbers, min_size=n, max_size=n)), dtype=torch.float32).view(shape)

    return tensor(n_tokens, d_model), tensor(n_latents, d_model), tensor(n_latents)


def marked(found: Found | None, shape: tuple[int, ...]) -> Tensor:
    assert found is not None
    marks = torch.zeros(shape, dtype=torch.bool)
    marks[found.tokens, found.latents] = True
    assert int(marks.sum()) == len(found.values)
    return marks


@settings(deadline=None)
@given(batch=batches(), budgets=st.lists(st.integers(1, 200), min_size=1, max_size=3), is_int8=st.booleans())
def test_what_is_found_is_what_a_sort_over_all_values_keeps_ties_included(
    batch: tuple[Tensor, Tensor, Tensor], budgets: list[int], is_int8: bool
) -> None:
    x, rows, bias = batch
    same_screen = screen(is_int8=is_int8)
    for budget in budgets:  # whatever the search before left behind
        found = same_screen.find_largest(x, rows, bias, budget=budget)
        values = x @ rows.T + bias
        expected = batch_topk(values, budget)
        assert torch.equal(marked(found, values.shape), expected)
        assert found is not None
        assert torch.equal(torch.from_numpy(found.values), values[expected])
        flat = found.tokens * len(rows) + found.latents
        assert (np.diff(flat) > 0).all()


@both_kinds
def test_neither_floor_nor_precision_nor_threads_nor_chunks_decide_a_bit(
    is_int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, rows, bias = (
        random_x(40, d_model=24),
        random_x(300, d_model=24, seed=1),
        0.01 * random_x(1, d_model=300)[0],
    )
    expected = screen(is_int8=not is_int8).find_largest(x, rows, bias, budget=200)
    assert expected is not None
    used = screen(is_int8=is_int8)
    monkeypatch.setattr(estimates_module, "MOST_ESTIMATES", 40 * 7)
    n_threads = torch.get_num_threads()
    for factor, n in [
        (1.0, 1),
        (100.0, 2),
        (0.01, 3),
        (1.0, 2),
    ]:  # leaves floors far too high and far too low
        torch.set_num_threads(n)
        used._workers = RowWorkers()
        used.find_largest(factor * x, rows, bias, budget=200)
        found = used.find_largest(x, rows, bias, budget=200)
        assert found is not None
        for name in Found._fields:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    torch.set_num_threads(n_threads)


@both_kinds
@pytest.mark.parametrize("lost", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["x", "rows", "bias"])
def test_nothing_is_found_where_something_is_not_finite(where: str, lost: float, is_int8: bool) -> None:
    batch = {"x": random_x(5), "rows": random_x(9, seed=1), "bias": torch.zeros(9)}
    batch[where].view(-1)[3] = lost
    assert screen(is_int8=is_int8).find_largest(*batch.values(), budget=3) is None


@both_kinds
def test_fewer_positive_values_than_the_budget_are_all_found(is_int8: bool) -> None:
    x, rows = random_x(5), random_x(9, seed=1)
    for bias in (torch.full((9,), -50.0), torch.zeros(9), torch.full((9,), 50.0)):
        found = screen(is_int8=is_int8).find_largest(x, rows, bias, budget=1000)
        assert torch.equal(marked(found, (5, 9)), x @ rows.T + bias > 0)


def test_int8_is_used_only_where_its_products_are_exact() -> None:
    if not has_fast_int8(64):
        pytest.skip("this processor has no instructions for products of int8")
    extremes = torch.tensor([[-127, 127]] * 300, dtype=torch.int8).repeat(1, 300)
    product = torch._int_mm(extremes, extremes.T)
    assert (product == 600 * 127 * 127).all()
    assert not any(has_fast_int8(d_model) for d_model in (1, 2**17))
