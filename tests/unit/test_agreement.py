"""Claims about how scores are compared with measured loss changes, and how sure the comparison is."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

from dmsae.ablation import LossChanges
from dmsae.agreement import bootstrap_correlations, change_errors, compare, standard_deviation
from dmsae.attribution import Attribution
from dmsae.ranks import rank_correlation
from dmsae.scoring import SCORES


def attribution_of(scores: Tensor) -> Attribution:
    each = dict.fromkeys(SCORES, scores.double())
    return Attribution(100, 4, 90, 1.0, torch.ones(len(scores)).double(), each, each, (each, each))


def changes_of(by_document: list[list[float]], tokens: list[int] | None = None) -> LossChanges:
    table = torch.tensor(by_document, dtype=torch.float64)
    return LossChanges(
        torch.arange(table.shape[1]), table, torch.tensor(tokens or [10] * len(table), dtype=torch.int64)
    )


def test_rank_correlation_is_one_where_a_score_orders_latents_as_the_loss_does():
    attribution = attribution_of(torch.tensor([5.0, 0.1, 3.0, 1.0]))
    attribution.scores["energy"] = -attribution.scores["absolute"]
    check = compare(changes_of([[9.0, -1.0, 0.3, 0.2]], [50]), attribution)
    assert check.rank_correlations["absolute"] == pytest.approx(1)
    assert check.rank_correlations["energy"] == pytest.approx(-1)
    assert check.loss_changes == pytest.approx([0.18, -0.02, 0.006, 0.004])
    assert (check.n_tokens, check.n_documents) == (50, 1)
    assert check.to_metrics()["latent_indices"] == [0, 1, 2, 3]


def test_the_scores_compared_are_those_of_the_sampled_latents():
    changes = LossChanges(
        torch.tensor([4, 1, 3]), torch.tensor([[1.0, 2.0, 3.0]]).double(), torch.tensor([5])
    )
    check = compare(changes, attribution_of(torch.tensor([9.0, 2.0, 9.0, 3.0, 1.0])))
    assert check.rank_correlations["quantile"] == pytest.approx(1)
    assert check.latent_indices == [4, 1, 3]


@given(pairs=st.lists(st.tuples(st.integers(-3, 3), st.floats(-1e9, 1e9)), min_size=3, max_size=40))
def test_rank_correlation_is_spearmans_ties_included(pairs):
    scores, changes = zip(*pairs, strict=True)
    assume(len(set(scores)) > 1)
    assume(len(set(changes)) > 1)
    assert rank_correlation(changes, scores) == pytest.approx(spearmanr(changes, scores).statistic, abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "changes"),
    [([1.0, 2.0], [1.0, 2.0]), ([1.0] * 4, [1.0, 2.0, 3.0, 4.0]), ([1.0, 2.0, 3.0], [0.0] * 3), ([], [])],
)
def test_rank_correlation_is_null_where_it_is_not_defined(scores, changes):
    found = compare(changes_of([changes]), attribution_of(torch.tensor(scores)))
    assert set(found.rank_correlations.values()) == {None}
    assert set(found.rank_correlation_ses.values()) == {None}


def test_the_error_of_a_change_over_documents_of_one_size_is_the_usual_one_of_a_mean():
    by_document = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = change_errors(changes_of(by_document.tolist(), [5] * 12))
    torch.testing.assert_close(found, (by_document / 5).std(dim=0) / math.sqrt(12))


def test_a_change_in_proportion_to_each_documents_length_is_known_without_error():
    assert change_errors(changes_of([[2.0, -4.0], [6.0, -12.0]], [10, 30])).tolist() == pytest.approx([0, 0])
    assert change_errors(changes_of([[2.0, -4.0]], [10])).isnan().all()


def test_the_bootstrap_shows_about_the_spread_of_drawing_latents_and_documents_anew():
    rng = np.random.default_rng(0)

    def draw() -> tuple[list[float], list[list[float]]]:
        scores = rng.normal(size=60)
        return scores.tolist(), (scores + rng.normal(size=(8, 60))).tolist()

    found = [
        rank_correlation(np.sum(changes, axis=0), scores) for scores, changes in (draw() for _ in range(200))
    ]
    spreads = []
    for _ in range(10):
        scores, changes = draw()
        draws = bootstrap_correlations(changes_of(changes), {"one": torch.tensor(scores)}, n_draws=60)
        spreads.append(standard_deviation(draws["one"]))
    # documents that are drawn twice make the measured order rougher than it is: the bootstrap errs upwards
    assert 0.8 * np.std(found) < np.mean(spreads) < 2.5 * np.std(found)


def test_all_scores_see_the_same_draws_and_the_same_call_gives_the_same_draws():
    changes = changes_of(torch.rand(5, 20, generator=torch.Generator().manual_seed(1)).tolist())
    scores = torch.rand(20, generator=torch.Generator().manual_seed(2)).double()
    one = bootstrap_correlations(changes, {"a": scores, "b": 3 * scores, "c": -scores}, n_draws=20)
    assert np.array_equal(one["a"], one["b"])
    np.testing.assert_allclose(one["a"], -one["c"])
    again = bootstrap_correlations(changes, {"a": scores}, n_draws=20)
    assert np.array_equal(one["a"], again["a"])


def test_unsigned_changes_are_compared_by_size():
    scores = {"one": torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double()}
    changes = changes_of([[-1.0, -2.0, -3.0, -4.0, -5.0]])
    signed, unsigned = (
        bootstrap_correlations(changes, scores, n_draws=9, is_signed=is_signed)["one"]
        for is_signed in (True, False)
    )
    np.testing.assert_allclose(signed, -1)
    np.testing.assert_allclose(unsigned, 1)


def test_a_spread_of_too_few_defined_draws_is_unknown():
    assert standard_deviation(np.array([1.0, math.nan, math.nan, math.nan])) is None
    assert standard_deviation(np.array([1.0, 3.0, math.nan])) == pytest.approx(math.sqrt(2))
