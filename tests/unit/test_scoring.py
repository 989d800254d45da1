"""Claims about scores and their standard errors, on hand-made firings."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dmsae.scoring import Firings, score, score_errors


def firings_of(attributions: Tensor, documents: Tensor, latent_acts: Tensor | None = None) -> Firings:
    """Make firings of a dense table (tokens, candidates); zeros are silent."""
    acts = (attributions != 0).float() if latent_acts is None else latent_acts
    token, candidate = (acts > 0).nonzero(as_tuple=True)
    return Firings(
        candidate, documents[token], attributions[token, candidate], acts[token, candidate], documents
    )


def test_scores_of_a_hand_made_case():
    attributions = torch.tensor([[-2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [-4.0, 0.0]])
    acts = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.5], [1.0, 0.0]])
    scores = score(firings_of(attributions, torch.arange(4), acts), 2, quantile=0.75)
    assert scores["absolute"].tolist() == [7 / 4, 3 / 4]
    assert scores["signed"].tolist() == [5 / 4, 0.0]
    assert scores["quantile"].tolist() == [2.0, 0.0]
    assert scores["energy"].tolist() == [6 / 4, 0.25 / 4]


def test_sums_are_float64_where_float32_ones_would_lose_every_small_firing():
    attributions = torch.ones(1025, 1)
    attributions[0] = 2.0**24
    assert attributions[0] + attributions[1] == attributions[0]  # a float32 sum would never move
    acts = attributions.sqrt()
    scores = score(firings_of(attributions, torch.arange(1025), acts), 1, quantile=0.5)
    for name in ("absolute", "energy"):
        assert scores[name].item() == (2**24 + 1024) / 1025
    assert (
        score(firings_of(-attributions, torch.arange(1025), acts), 1, quantile=0.5)["signed"].item()
        == (2**24 + 1024) / 1025
    )


@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 0.0, -1.5, 0.25, 2.0, -7.0]), min_size=3, max_size=3), min_size=1
    ),
    st.sampled_from([0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0]),
)
def test_the_quantile_is_that_of_all_tokens_silent_ones_included(table, quantile):
    attributions = torch.tensor(table)
    found = score(firings_of(attributions, torch.arange(len(table))), 3, quantile=quantile)["quantile"]
    rank = max(1, math.ceil(round(quantile * 100) * len(table) / 100))
    assert found.tolist() == attributions.abs().sort(dim=0).values[rank - 1].tolist()


def test_with_one_token_a_document_the_error_is_the_usual_one_of_a_mean():
    attributions = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    firings = firings_of(attributions, torch.arange(50))
    errors = score_errors(firings, score(firings, 2, quantile=0.9), quantile=0.9)
    torch.testing.assert_close(errors["absolute"], attributions.abs().std(dim=0) / math.sqrt(50))
    torch.testing.assert_close(errors["signed"], attributions.std(dim=0) / math.sqrt(50))


def test_the_error_of_a_mean_over_documents_equals_its_slow_twin():
    generator = torch.Generator().manual_seed(1)
    documents = torch.randint(0, 7, (60,), generator=generator) * 3
    attributions = torch.randn(60, 4, dtype=torch.float64, generator=generator)
    attributions[torch.rand(60, 4, generator=generator) < 0.6] = 0
    attributions[documents == 6, 2] = 0  # silent in one whole document
    firings = firings_of(attributions, documents)
    errors = score_errors(firings, score(firings, 4, quantile=0.9), quantile=0.9)
    values = attributions.abs()
    residuals = [
        (values - values.mean(dim=0))[documents == document].sum(dim=0) for document in documents.unique()
    ]
    n_documents = len(residuals)
    squares = torch.stack(residuals).square().sum(dim=0)
    torch.testing.assert_close(errors["absolute"], (n_documents / (n_documents - 1) * squares).sqrt() / 60)


def test_tokens_that_repeat_within_a_document_do_not_make_a_score_surer():
    values = torch.rand(40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.1
    once = firings_of(values, torch.arange(40))
    often = firings_of(values.repeat_interleave(5, dim=0), torch.arange(40).repeat_interleave(5))
    for name in ("absolute", "energy", "quantile"):
        of_once = score_errors(once, score(once, 1, quantile=0.5), quantile=0.5)[name]
        of_often = score_errors(often, score(often, 1, quantile=0.5), quantile=0.5)[name]
        torch.testing.assert_close(of_once, of_often, rtol=0.25, atol=1e-12)


def test_the_error_of_the_quantile_is_about_what_drawing_anew_shows():
    rng = np.random.default_rng(3)
    n_tokens, quantile = 2000, 0.9
    draws = [np.quantile(rng.random(n_tokens), quantile) for _ in range(300)]
    values = torch.from_numpy(rng.random((n_tokens, 1)))
    firings = firings_of(values, torch.arange(n_tokens))
    (error,) = score_errors(firings, score(firings, 1, quantile=quantile), quantile=quantile)["quantile"]
    assert error.item() == pytest.approx(np.std(draws), rel=0.35)


def test_one_document_leaves_every_error_unknown():
    firings = firings_of(torch.ones(5, 2), torch.zeros(5, dtype=torch.int64))
    errors = score_errors(firings, score(firings, 2, quantile=0.9), quantile=0.9)
    assert all(error.isnan().all() for error in errors.values())


def test_no_tokens_score_zero():
    firings = firings_of(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)).of_documents(torch.tensor([9]))
    assert firings.n_tokens == 0
    assert all(not values.any() for values in score(firings, 2, quantile=0.9).values())
