"""Claims about attribution: which tokens and losses count, whatever the batches or padding.

That scores equal brute force is claimed in `test_attribution_truth.py`.
"""

import pytest
import torch
from torch.nn.functional import cross_entropy

from dmsae.activations import ContextBatch
from dmsae.attribution import Attribution, attribute
from dmsae.config import AttributionConfig
from dmsae.errors import CycleFailed
from dmsae.scoring import SCORES
from dmsae.splicing import take_rows
from tests.spliced import CutModel, in_batches, pad, random_sae

LENGTHS = [9, 12, 2, 7, 12, 5]


@pytest.fixture(scope="module")
def model() -> CutModel:
    return CutModel()


@pytest.fixture(scope="module")
def batch(model: CutModel) -> ContextBatch:
    return model.contexts(LENGTHS)


def config(**settings) -> AttributionConfig:
    return AttributionConfig(**{"n_tokens": 10_000, **settings})


def run(batches, model, sae, **settings) -> Attribution:
    return attribute(batches, model, sae, rms=5.0, config=config(**settings))


def assert_same(one: Attribution, other: Attribution, *, rtol: float = 1e-4) -> None:
    assert one[:3] == other[:3]
    assert one.loss == pytest.approx(other.loss, rel=1e-5)
    for name, tensor in one.to_tensors().items():
        scale = tensor.nan_to_num().abs().max().item()
        torch.testing.assert_close(
            tensor, other.to_tensors()[name], rtol=rtol, atol=rtol * scale, equal_nan=True, msg=name
        )


def test_scores_do_not_depend_on_how_contexts_are_batched(model, batch):
    sae = random_sae()
    whole = run([batch], model, sae)
    for n_contexts in (1, 4):
        assert_same(run(in_batches(batch, n_contexts), model, sae), whole)


def test_padding_counts_for_nothing(model, batch):
    sae = random_sae()
    assert_same(run([pad(batch, 6)], model, sae), run([batch], model, sae))
    short, full = take_rows(batch, slice(0, 1)), take_rows(batch, slice(1, 2))
    trimmed = ContextBatch(
        *(field[:, :9] if field.dim() > 1 else field for field in short)
    )  # the context of nine tokens without any padding
    assert_same(run([trimmed, full], model, sae), run([take_rows(batch, slice(2))], model, sae))


def test_exactly_the_first_kept_tokens_within_the_budget_are_read(model, batch):
    sae, n_kept = random_sae(), int(batch.is_kept.sum())
    found = run([batch], model, sae, n_tokens=14)
    cut = batch.is_kept & (batch.is_kept.flatten().cumsum(0).view_as(batch.is_kept) <= 14)
    assert found.n_tokens == 14
    assert_same(found, run([batch._replace(is_kept=cut)], model, sae))
    assert_same(run(in_batches(batch, 1), model, sae, n_tokens=14), found)
    assert run([batch], model, sae, n_tokens=n_kept + 1).n_tokens == n_kept


def test_losses_count_only_where_a_kept_token_has_a_next_one(model, batch):
    found = run([batch], model, random_sae())
    # the first token of a context is not kept here, the last has no next one
    assert found.n_losses == sum(length - 2 for length in LENGTHS)
    assert found.n_tokens == sum(length - 1 for length in LENGTHS)
    assert found.n_documents == 3


def test_with_the_error_term_the_model_sees_its_own_activations(model, batch):
    logits = model(batch, batch.activations)
    counted = batch.is_kept[:, :-1] & batch.is_token[:, 1:]
    clean = cross_entropy(logits[:, :-1][counted], batch.input_ids[:, 1:][counted]).item()
    with_error = run([batch], model, random_sae(), error_term="add")
    without = run([batch], model, random_sae())
    assert with_error.loss == pytest.approx(clean, rel=1e-5)
    assert without.loss != pytest.approx(clean, rel=1e-2)
    assert not torch.allclose(with_error.scores["absolute"], without.scores["absolute"], rtol=0.01)
    assert torch.equal(with_error.scores["energy"], without.scores["energy"])


def test_a_latent_that_never_fires_scores_exactly_zero(model, batch):
    sae = random_sae()
    sae.threshold[3] = 1e9
    found = run([batch], model, sae)
    assert all(found.scores[name][3] == 0 for name in SCORES)
    assert found.densities[3] == 0


def test_the_halves_are_every_other_document(model, batch):
    sae = random_sae()
    first, second = run([batch], model, sae).half_scores
    for half, rows in ((first, [0, 1, 4, 5]), (second, [2, 3])):
        alone = run([take_rows(batch, torch.tensor(rows))], model, sae)
        for name in SCORES:
            torch.testing.assert_close(half[name], alone.scores[name], rtol=1e-4, atol=1e-6)


def test_attribution_changes_neither_the_sae_nor_the_batch(model, batch):
    sae = random_sae()
    resid, W_dec = batch.activations.clone(), sae.W_dec.clone()
    run([batch], model, sae)
    assert torch.equal(batch.activations, resid)
    assert torch.equal(sae.W_dec, W_dec)
    assert not sae.W_dec.requires_grad


def test_a_part_without_any_kept_token_fails_the_cycle(model, batch):
    empty = batch._replace(is_kept=torch.zeros_like(batch.is_kept))
    for batches in ([empty], []):
        with pytest.raises(CycleFailed, match="no token that is kept") as caught:
            run(batches, model, random_sae())
        assert caught.value.failure == "dataset_exhausted"
