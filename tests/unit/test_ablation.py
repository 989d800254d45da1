"""Claims about single-latent ablations: what is measured, and on which latents."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from dmsae.ablation import LossChanges, measure_ablations, sample_latents
from dmsae.activations import ContextBatch
from dmsae.attribution import Attribution, Replacement, attribute
from dmsae.config import AttributionConfig
from dmsae.sae import MatryoshkaSae
from dmsae.scoring import SCORES
from dmsae.splicing import take_rows
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


def measure(batches, model, sae, latents, **settings) -> LossChanges:
    return measure_ablations(batches, model, Replacement(sae, RMS, **settings), latents=latents)


def total_loss(
    batch: ContextBatch,
    model: CutModel,
    sae: MatryoshkaSae,
    *,
    without: int | None,
    error_term: str = "none",
) -> float:
    """Sum the loss with one latent's activations set to zero inside what stands for the activations."""
    acts = sae.encode(batch.activations / RMS)
    error = batch.activations - RMS * sae.decode(acts, sae.prefix_widths[0])
    if without is not None:
        acts[..., without] = 0
    x_hat = RMS * sae.decode(acts, sae.prefix_widths[0])
    x_hat = x_hat + error if error_term == "add" else x_hat
    logits = model(batch, torch.where(batch.is_kept[..., None], x_hat, batch.activations))
    counted = batch.is_kept[:, :-1] & batch.is_token[:, 1:]
    losses = cross_entropy(logits[:, :-1][counted], batch.input_ids[:, 1:][counted], reduction="none")
    return losses.double().sum().item()


@pytest.mark.parametrize("error_term", ["none", "add"])
def test_the_loss_change_equals_running_every_context_without_the_latent(model, batch, error_term):
    sae, latents = random_sae(), torch.tensor([7, 0, 2, 9])
    found = measure([batch], model, sae, latents, error_term=error_term)
    intact = total_loss(batch, model, sae, without=None, error_term=error_term)
    n_kept = int(batch.is_kept.sum())
    expected = [
        (total_loss(batch, model, sae, without=latent, error_term=error_term) - intact) / n_kept
        for latent in latents.tolist()
    ]
    assert min(map(abs, expected)) > 1e-4
    assert found.changes.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert found.n_tokens == n_kept


def test_the_changes_of_documents_are_those_of_measuring_each_alone(model, batch):
    sae, latents = random_sae(), torch.tensor([7, 0, 2])
    found = measure(in_batches(batch, 4), model, sae, latents)  # the second document lies in both batches
    assert found.by_document.shape == (3, 3)
    for document in range(3):
        alone = measure([take_rows(batch, slice(2 * document, 2 * document + 2))], model, sae, latents)
        torch.testing.assert_close(found.by_document[document], alone.by_document[0], rtol=1e-3, atol=1e-5)
        assert found.document_tokens[document] == alone.n_tokens
    assert (found.by_document.count_nonzero(dim=0) > 1).all()


def test_documents_of_one_packed_context_are_told_apart(model):
    batch = model.contexts([12])
    packed = batch._replace(document_index=torch.tensor([[4] * 5 + [-1] + [9] * 6]))
    found = measure([packed], model, random_sae(), torch.tensor([7, 0]))
    whole = measure([batch], model, random_sae(), torch.tensor([7, 0]))
    # the token of another part is kept here, so it is a document too; no loss is counted across a border
    assert found.document_tokens.tolist() == [1, 4, 6]
    assert found.n_tokens == whole.n_tokens == 11
    assert not found.by_document[0].any()
    assert found.by_document[1:].count_nonzero() > 0


def test_without_any_context_nothing_changes(model):
    found = measure([], model, random_sae(), torch.tensor([1, 2]))
    assert (found.n_tokens, found.changes.tolist()) == (0, [0, 0])


def test_only_contexts_in_which_the_latent_fires_are_run_again(model, batch):
    sae, seen = random_sae(), []
    kept_acts = sae.encode(batch.activations / RMS) * batch.is_kept[..., None]
    n_firing_contexts = (kept_acts > 0).any(dim=1).sum(dim=0)[: sae.prefix_widths[0]]
    latent = int(torch.where(n_firing_contexts == 0, 99, n_firing_contexts).argmin())

    def counting(batch: ContextBatch, resid: Tensor) -> Tensor:
        seen.append(len(resid))
        return model(batch, resid)

    measure([batch], counting, sae, torch.tensor([latent]))
    n_firing = int(n_firing_contexts[latent])
    assert 0 < n_firing < len(batch.activations)
    assert sum(seen) == len(batch.activations) + n_firing


def test_loss_changes_depend_neither_on_batches_nor_on_padding(model, batch):
    sae, latents = random_sae(), torch.arange(5)
    whole = measure([batch], model, sae, latents)
    for batches in (in_batches(batch, 1), in_batches(batch, 4), [pad(batch, 5)]):
        found = measure(batches, model, sae, latents)
        torch.testing.assert_close(found.changes, whole.changes, rtol=1e-3, atol=1e-6)
        assert found.n_tokens == whole.n_tokens


def test_a_silent_latent_changes_nothing(model, batch):
    sae = random_sae()
    sae.threshold[4] = 1e9
    assert measure([batch], model, sae, torch.tensor([4])).changes.tolist() == [0]


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
