"""Claims about single-latent ablations: what is measured, on which latents, and beside which scores."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import cross_entropy

from dmsae.ablation import LossChanges, compare, measure_ablations, sample_latents
from dmsae.activations import ContextBatch
from dmsae.attribution import Attribution, attribute
from dmsae.config import AttributionConfig
from dmsae.sae import MatryoshkaSae
from dmsae.scoring import SCORES
from tests.spliced import CutModel, in_batches, pad, random_sae

RMS = 5.0


@pytest.fixture(scope="module")
def model() -> CutModel:
    return CutModel()


@pytest.fixture(scope="module")
def batch(model: CutModel) -> ContextBatch:
    return model.contexts([9, 12, 2, 7, 12, 5])


def attribution_of(scores: Tensor, densities: Tensor) -> Attribution:
    each = dict.fromkeys(SCORES, scores.double())
    return Attribution(100, 4, 90, 1.0, densities.double(), each, each, (each, each))


def total_loss(batch: ContextBatch, model: CutModel, sae: MatryoshkaSae, *, without: int | None) -> float:
    """Sum the loss with one latent's activations set to zero inside the most nested reconstruction."""
    acts = sae.encode(batch.activations / RMS)
    if without is not None:
        acts[..., without] = 0
    x_hat = RMS * sae.decode(acts, sae.prefix_widths[0])
    logits = model(batch, torch.where(batch.is_kept[..., None], x_hat, batch.activations))
    counted = batch.is_kept[:, :-1] & batch.is_token[:, 1:]
    losses = cross_entropy(logits[:, :-1][counted], batch.input_ids[:, 1:][counted], reduction="none")
    return losses.double().sum().item()


def test_the_loss_change_equals_running_every_context_without_the_latent(model, batch):
    sae, latents = random_sae(), torch.tensor([7, 0, 2, 9])
    found = measure_ablations([batch], model, sae, rms=RMS, latents=latents)
    intact = total_loss(batch, model, sae, without=None)
    n_kept = int(batch.is_kept.sum())
    expected = [
        (total_loss(batch, model, sae, without=latent) - intact) / n_kept for latent in latents.tolist()
    ]
    assert min(map(abs, expected)) > 1e-4
    assert found.changes.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert found.n_tokens == n_kept


def test_only_contexts_in_which_the_latent_fires_are_run_again(model, batch):
    sae, seen = random_sae(), []
    kept_acts = sae.encode(batch.activations / RMS) * batch.is_kept[..., None]
    n_firing_contexts = (kept_acts > 0).any(dim=1).sum(dim=0)[: sae.prefix_widths[0]]
    latent = int(torch.where(n_firing_contexts == 0, 99, n_firing_contexts).argmin())

    def counting(batch: ContextBatch, resid: Tensor) -> Tensor:
        seen.append(len(resid))
        return model(batch, resid)

    measure_ablations([batch], counting, sae, rms=RMS, latents=torch.tensor([latent]))
    n_firing = int(n_firing_contexts[latent])
    assert 0 < n_firing < len(batch.activations)
    assert sum(seen) == len(batch.activations) + n_firing


def test_loss_changes_depend_neither_on_batches_nor_on_padding(model, batch):
    sae, latents = random_sae(), torch.arange(5)
    whole = measure_ablations([batch], model, sae, rms=RMS, latents=latents)
    for batches in (in_batches(batch, 1), in_batches(batch, 4), [pad(batch, 5)]):
        found = measure_ablations(batches, model, sae, rms=RMS, latents=latents)
        torch.testing.assert_close(found.changes, whole.changes, rtol=1e-3, atol=1e-6)
        assert found.n_tokens == whole.n_tokens


def test_a_silent_latent_changes_nothing(model, batch):
    sae = random_sae()
    sae.threshold[4] = 1e9
    assert measure_ablations([batch], model, sae, rms=RMS, latents=torch.tensor([4])).changes.tolist() == [0]


@given(st.integers(1, 40), st.integers(0, 50), st.integers(0, 5))
def test_the_sample_is_spread_over_the_ranking_of_those_that_fire(n_firing, n_wanted, seed):
    scores = torch.rand(45, generator=torch.Generator().manual_seed(seed))
    densities = (torch.arange(45) < n_firing).double()
    config = AttributionConfig(ablation_latents=n_wanted)
    sample = sample_latents(attribution_of(scores, densities), config=config, seed=seed).tolist()
    assert len(sample) == min(n_wanted, n_firing)
    ranking = sorted(range(n_firing), key=lambda i: -scores[i].item())
    for place, latent in enumerate(sample):
        start, stop = (edge * n_firing // len(sample) for edge in (place, place + 1))
        assert latent in ranking[start:stop]


def test_the_same_seed_draws_the_same_sample_and_another_seed_another():
    attribution = attribution_of(torch.rand(100), torch.ones(100))
    config = AttributionConfig(ablation_latents=10)
    one, same, other = (sample_latents(attribution, config=config, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_rank_correlation_is_one_where_a_score_orders_latents_as_the_loss_does():
    attribution = attribution_of(torch.tensor([5.0, 0.1, 3.0, 1.0]), torch.ones(4))
    attribution.scores["energy"] = -attribution.scores["absolute"]
    changes = LossChanges(torch.tensor([0, 1, 2, 3]), torch.tensor([9.0, -1.0, 0.3, 0.2]).double(), 50)
    check = compare(changes, attribution)
    assert check.rank_correlations["absolute"] == pytest.approx(1)
    assert check.rank_correlations["energy"] == pytest.approx(-1)
    assert check.to_metrics()["latent_indices"] == [0, 1, 2, 3]


@given(
    pairs=st.lists(st.tuples(st.integers(-3, 3), st.floats(-1e9, 1e9)), min_size=3, max_size=40),
)
def test_rank_correlation_is_spearmans_ties_included(pairs):
    scores, changes = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    assume(len(scores.unique()) > 1)
    assume(len(changes.unique()) > 1)
    attribution = attribution_of(scores, torch.ones(len(scores)))
    found = compare(LossChanges(torch.arange(len(scores)), changes, 50), attribution)
    expected = spearmanr(changes.numpy(), scores.numpy()).statistic
    assert found.rank_correlations["absolute"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "changes"),
    [([1.0, 2.0], [1.0, 2.0]), ([1.0] * 4, [1.0, 2.0, 3.0, 4.0]), ([1.0, 2.0, 3.0], [0.0] * 3)],
)
def test_rank_correlation_is_null_where_it_is_not_defined(scores, changes):
    attribution = attribution_of(torch.tensor(scores), torch.ones(len(scores)))
    found = compare(LossChanges(torch.arange(len(scores)), torch.tensor(changes).double(), 50), attribution)
    assert set(found.rank_correlations.values()) == {None}


def test_the_score_agrees_with_the_measured_loss_to_first_order(model, batch):
    """Scaling one latent down a little changes the loss by the sum of its attributions times that little."""
    sae, little = random_sae(), 1e-3
    found = attribute([batch], model, sae, rms=RMS, config=AttributionConfig(n_tokens=1000, score="signed"))
    latent = int(found.scores["signed"].argmax())
    losses = []
    for factor in (1 + little, 1 - little):
        W_dec = sae.W_dec.clone()
        W_dec[latent] *= factor
        scaled = MatryoshkaSae(**{**vars(sae), "W_dec": W_dec})
        losses.append(total_loss(batch, model, scaled, without=None))
    slope = (losses[1] - losses[0]) / (2 * little) / found.n_tokens
    assert slope == pytest.approx(found.scores["signed"][latent].item(), rel=0.02)
    assert slope > 0.01
