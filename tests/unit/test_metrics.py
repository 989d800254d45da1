"""Claims about evaluation: identities, a slow twin, a hand-made case, indifference to batches and padding."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dmsae.activations import ContextBatch
from dmsae.errors import CycleFailed
from dmsae.metrics import Evaluation, evaluate
from dmsae.sae import MatryoshkaSae
from dmsae.splicing import take_rows
from tests.spliced import D_MODEL, CutModel, core_of, in_batches, pad, random_sae, rms_of

LENGTHS = [9, 12, 2, 7, 12, 5]


@pytest.fixture(scope="module")
def model() -> CutModel:
    return CutModel()


@pytest.fixture(scope="module")
def batch(model: CutModel) -> ContextBatch:
    return model.contexts(LENGTHS)


def run(
    batches: Any, model: Any, sae: MatryoshkaSae, *, rms: float = 5.0, previous: Any = None
) -> Evaluation:
    return evaluate(batches, model, sae, rms=rms, previous=previous)


def constant_sae(b_dec: Tensor) -> MatryoshkaSae:
    """Make an SAE that says `b_dec` to everything."""
    silent = random_sae()
    return replace(silent, b_dec=b_dec, threshold=torch.full_like(silent.threshold, math.inf))


def identity_sae() -> MatryoshkaSae:
    """Make an SAE that gives back what it gets: x = ReLU(x) - ReLU(-x)."""
    one = torch.eye(D_MODEL)
    return MatryoshkaSae(
        W_enc=torch.cat([one, -one], dim=1),
        b_enc=torch.zeros(2 * D_MODEL),
        W_dec=torch.cat([one, -one]),
        b_dec=torch.zeros(D_MODEL),
        threshold=torch.zeros(2 * D_MODEL),
        prefix_widths=[D_MODEL, 2 * D_MODEL],
        n_core=0,
    )


def counted_ce(model: CutModel, batch: ContextBatch, resid: Tensor) -> float:
    logits, losses = model(batch, resid), []
    for row, length in enumerate(batch.is_token.sum(dim=1).tolist()):
        losses += [
            cross_entropy(logits[row, t], batch.input_ids[row, t + 1]).item()
            for t in range(length - 1)
            if batch.is_kept[row, t]
        ]
    return sum(losses) / len(losses)


def kept_replaced(batch: ContextBatch, values: Tensor) -> Tensor:
    return torch.where(batch.is_kept[..., None], values, batch.activations)


def assert_same(one: Evaluation, other: Evaluation) -> None:
    ours, theirs = one.to_metrics(), other.to_metrics()
    for name in ours:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
    torch.testing.assert_close(one.densities, other.densities)
    if one.drift is not None and other.drift is not None:
        assert one.drift.firing_jaccard == other.drift.firing_jaccard


def test_an_sae_that_gives_everything_back_explains_and_recovers_all(model, batch):
    found = run([batch], model, identity_sae())
    assert found.explained_variance[-1] == pytest.approx(1, abs=1e-9)
    assert found.explained_variance_median[-1] == pytest.approx(1, abs=1e-9)
    assert found.explained_variance[0] < 0.9
    assert found.lr_kept[-1] == pytest.approx(1, abs=1e-5)
    assert found.lr_saelens[-1] == pytest.approx(1, abs=1e-5)
    assert found.ce_increase[-1] == pytest.approx(0, abs=1e-5)
    assert found.kl[-1] == pytest.approx(0, abs=1e-6)
    assert found.l0_core + found.l0_non_core == D_MODEL
    # a direction and its opposite share the tokens between them
    assert (found.densities[:D_MODEL] + found.densities[D_MODEL:]).tolist() == pytest.approx([1.0] * D_MODEL)
    assert found.to_metrics()["dead_fraction"] == 0


def test_zeros_at_kept_positions_recover_nothing(model, batch):
    found = run([batch], model, constant_sae(torch.zeros(D_MODEL)))
    assert found.lr_kept == [0.0, 0.0, 0.0]
    assert found.ce == [found.ce_zero_kept] * 3
    assert found.lr_saelens[0] != 0  # the first tokens of the contexts are not kept: SAELens zeroes them too
    assert found.explained_variance[0] < 0
    assert found.ce_increase == [found.ce_zero_kept - found.ce_clean] * 3
    assert all(kl > 0.01 for kl in found.kl)


def test_an_sae_that_says_nothing_has_no_active_latent(model, batch):
    found = run([batch], model, constant_sae(torch.zeros(D_MODEL)))
    assert found.l0_core == found.l0_non_core == found.to_metrics()["l0"] == found.l0_se == 0
    assert not found.densities.any()
    assert found.to_metrics()["dead_fraction"] == 1


def test_the_constant_mean_explains_no_variance_and_costs_what_mean_ablation_costs(model, batch):
    mean = batch.activations[batch.is_kept].mean(dim=0)
    found = run([batch], model, constant_sae(mean / 5.0))
    assert found.explained_variance == pytest.approx([0.0] * 3, abs=1e-6)
    assert found.ce == pytest.approx([found.ce_mean] * 3, rel=1e-6)
    assert found.ce_mean == pytest.approx(counted_ce(model, batch, kept_replaced(batch, mean)), rel=1e-5)


def test_every_cross_entropy_equals_its_slow_twin(model, batch):
    sae, rms = random_sae(), rms_of(batch)
    found = run([batch], model, sae, rms=rms)
    acts = sae.encode(batch.activations / rms)
    assert found.ce_clean == pytest.approx(counted_ce(model, batch, batch.activations), rel=1e-5)
    for g, width in enumerate(sae.prefix_widths):
        spliced = kept_replaced(batch, rms * sae.decode(acts, width))
        assert found.ce[g] == pytest.approx(counted_ce(model, batch, spliced), rel=1e-5)
        counted = batch.is_kept[:, :-1] & batch.is_token[:, 1:]
        p, q = (model(batch, r)[:, :-1][counted].log_softmax(-1) for r in (batch.activations, spliced))
        assert found.kl[g] == pytest.approx((p.exp() * (p - q)).sum(dim=1).mean().item(), rel=1e-4)
    zeros = torch.zeros_like(batch.activations)
    assert found.ce_zero_all == pytest.approx(counted_ce(model, batch, zeros), rel=1e-5)
    assert found.ce_zero_kept == pytest.approx(
        counted_ce(model, batch, kept_replaced(batch, zeros)), rel=1e-5
    )
    assert found.ce_zero_all != pytest.approx(found.ce_zero_kept, rel=1e-3)
    ablated = found.ce_zero_kept - found.ce_clean
    assert found.lr_kept[-1] == pytest.approx((found.ce_zero_kept - found.ce[-1]) / ablated)
    assert found.n_losses == sum(length - 2 for length in LENGTHS)


def test_figures_of_a_hand_made_case():
    """Two dimensions, four tokens, one latent a direction; the model reads the logits off the stream."""
    resid = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [4.0, 0.0], [0.0, 4.0]]])
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    batch = ContextBatch(
        torch.tensor([[0, 1, 0, 1]]), everywhere, torch.zeros(1, 4).long(), resid, everywhere
    )
    sae = MatryoshkaSae(
        W_enc=torch.eye(2),
        b_enc=torch.zeros(2),
        W_dec=torch.eye(2),
        b_dec=torch.zeros(2),
        threshold=torch.tensor([0.0, 1.0]),  # the second direction's weaker token is lost
        prefix_widths=[1, 2],
        n_core=1,
    )
    found = evaluate([batch], lambda _, resid: resid, sae, rms=2.0, previous=None)
    # the mean is (1.5, 1.5); squared distances to it 2.5, 2.5, 8.5, 8.5, and what the prefixes lose 20 and 4
    assert found.explained_variance == pytest.approx([1 - 20 / 22, 1 - 4 / 22])
    assert found.explained_variance_median == pytest.approx([0.5 * (1 - 0.6), 1.0])
    assert (found.l0_core, found.l0_non_core) == (0.5, 0.25)
    assert found.densities.tolist() == [0.5, 0.25]
    assert found.l0_se is None  # a single document
    assert found.to_metrics()["l0"] == 0.75
    assert found.to_metrics()["dead_fraction"] == 0

    def ce(*gaps: float) -> float:
        """Give the mean loss where the right logit is ahead by these gaps."""
        return sum(math.log1p(math.exp(-gap)) for gap in gaps) / len(gaps)

    # each token points at itself, the next one is always the other
    assert found.ce_clean == pytest.approx(ce(-2, -2, -4))
    assert found.ce == pytest.approx([ce(-2, 0, -4), ce(-2, 0, -4)])
    assert found.ce_zero_all == found.ce_zero_kept == pytest.approx(math.log(2))
    assert found.ce_mean == pytest.approx(math.log(2))
    increase = ce(-2, 0, -4) - ce(-2, -2, -4)
    assert found.ce_increase == pytest.approx([increase] * 2)
    recovered = (math.log(2) - ce(-2, 0, -4)) / (math.log(2) - ce(-2, -2, -4))
    assert found.lr_saelens == found.lr_kept == pytest.approx([recovered] * 2)
    # where nothing is left the other way is as likely: of the three positions, the second
    p = 1 / (1 + math.exp(-2))
    kl = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert found.kl == pytest.approx([kl / 3] * 2)


def test_the_standard_error_of_the_l0_is_over_documents():
    """Two documents of two tokens: both latents fire on those of the first, none on those of the other."""
    resid = torch.tensor([[[2.0, 2.0], [2.0, 2.0], [-2.0, -2.0], [-2.0, -2.0]]])
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    documents = torch.tensor([[0, 0, 1, 1]])
    batch = ContextBatch(torch.zeros(1, 4).long(), everywhere, documents, resid, everywhere)
    one, two = torch.eye(2), torch.zeros(2)
    sae = MatryoshkaSae(
        W_enc=one, b_enc=two, W_dec=one, b_dec=two, threshold=two, prefix_widths=[1, 2], n_core=0
    )
    found = evaluate([batch], lambda _, resid: resid, sae, rms=1.0, previous=None)
    assert found.l0_non_core == 1
    # each document's sum strays by 2: sqrt((4 + 4) * 2 / 1) / 4
    assert found.l0_se == pytest.approx(1.0)


def test_figures_do_not_depend_on_how_contexts_are_batched_or_padded(model, batch):
    sae, previous = random_sae(n_core=3), core_of(random_sae(seed=4), [0, 1, 2])
    whole = run([batch], model, sae, previous=previous)
    for batches in (in_batches(batch, 1), in_batches(batch, 4), [pad(batch, 6)]):
        assert_same(run(batches, model, sae, previous=previous), whole)


def test_a_core_that_has_not_changed_has_not_drifted(model, batch):
    sae = random_sae(n_core=4)
    sae.threshold[3] = math.inf
    drift = run([batch], model, sae, previous=core_of(sae, [0, 1, 2, 3])).drift
    assert drift is not None
    assert drift.decoder_cosine == pytest.approx([1.0] * 4)
    assert drift.firing_jaccard == [1.0, 1.0, 1.0, None]


def test_drift_compares_firings_on_the_same_tokens(model, batch):
    sae = random_sae(n_core=2)
    before = core_of(sae, [0, 1])
    before.W_dec[1] = -before.W_dec[1]
    x = batch.activations[batch.is_kept] / 5.0
    before.threshold[0] = sae.encode(x)[:, 0].unique()[2]  # the two weakest firings of now are none of then
    now, then = sae.encode(x)[:, 0] > 0, sae.pre_acts(x)[:, 0] > before.threshold[0]
    drift = run([batch], model, sae, previous=before).drift
    assert drift is not None
    assert 0 < then.sum() < now.sum()
    assert drift.firing_jaccard[0] == pytest.approx((then.sum() / now.sum()).item())
    assert drift.decoder_cosine == pytest.approx([1.0, -1.0])


def test_latents_that_never_fire_count_as_dead(model, batch):
    sae = random_sae(n_core=2)
    sae.threshold[:6] = math.inf
    found = run([batch], model, sae)
    silent = (found.densities == 0).double().mean().item()
    assert silent >= 6 / 24
    assert found.to_metrics()["dead_fraction"] == silent
    assert found.l0_core == 0


def test_what_cannot_be_said_is_null(model, batch):
    lonely = take_rows(batch, slice(2, 3))  # two tokens, only the last of them kept: no loss is counted
    metrics = run([lonely], model, random_sae()).to_metrics()
    for name in ("ce_clean", "ce_mean", "ce_increase", "lr_kept", "lr_saelens", "explained_variance"):
        assert metrics[name] is None
    flat = batch._replace(activations=torch.zeros_like(batch.activations))
    found = run([flat], model, random_sae())
    assert found.explained_variance_median == [None] * 3
    assert found.lr_kept == [None] * 3  # zero ablation changes nothing


def test_a_part_without_any_kept_token_fails_the_cycle(model, batch):
    with pytest.raises(CycleFailed, match="no token that is kept") as caught:
        run([batch._replace(is_kept=torch.zeros_like(batch.is_kept))], model, random_sae())
    assert caught.value.failure == "dataset_exhausted"


def test_a_loss_that_is_not_finite_fails_the_cycle(model, batch):
    sae = random_sae()
    sae.W_dec[0] = math.nan
    with pytest.raises(CycleFailed, match="prefix 0") as caught:
        run([batch], model, sae)
    assert caught.value.failure == "non_finite"


def test_measuring_changes_neither_the_sae_nor_the_batch(model, batch):
    sae = random_sae(n_core=2)
    before = {k: v.clone() for k, v in vars(sae).items() if isinstance(v, Tensor)}
    activations = batch.activations.clone()
    run([batch], model, sae, previous=core_of(sae, [0, 1]))
    assert all(torch.equal(getattr(sae, name), tensor) for name, tensor in before.items())
    assert torch.equal(batch.activations, activations)
