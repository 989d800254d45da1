"""Which activations are kept, and at what scale."""

import math

import pytest
import torch

from dmsae.activations import Scale, collect, measure_scale, norm_limit
from dmsae.config import ActivationConfig
from dmsae.errors import CycleFailed
from dmsae.hooks import run_lower
from tests.harvesting import BOS, harvester, make_contexts
from tests.tiny import tiny_loaded


@pytest.fixture(scope="module")
def loaded():
    return tiny_loaded()


def joined(batches, field):
    return torch.cat([getattr(batch, field) for batch in batches])


def test_the_harvest_gives_the_activations_of_every_context_in_order(loaded):
    contexts, reader = make_contexts(), harvester(loaded)
    batches = list(reader.harvest(contexts))
    assert torch.equal(joined(batches, "input_ids"), contexts.input_ids)
    assert torch.equal(joined(batches, "document_index"), contexts.document_index)
    expected = run_lower(loaded, reader.hook, input_ids=contexts.input_ids, is_token=contexts.is_token)
    torch.testing.assert_close(joined(batches, "activations"), expected, rtol=1e-4, atol=1e-4)


def test_padding_and_special_ids_are_dropped_wherever_they_stand(loaded):
    contexts = make_contexts()
    contexts.input_ids[1, 5] = BOS
    batches = list(harvester(loaded).harvest(contexts))
    expected = contexts.is_token & (contexts.input_ids > 2)
    assert torch.equal(joined(batches, "is_kept"), expected)
    assert not expected[1, 5]


def test_tokens_beyond_the_norm_limit_are_dropped_and_every_drop_is_counted_by_its_reason(loaded):
    contexts = make_contexts()
    reader = harvester(loaded, model_batch_contexts=40)
    (free,) = reader.harvest(contexts)
    limit = free.activations.norm(dim=-1)[free.is_kept].quantile(0.5).item()
    (limited,) = reader.harvest(contexts, max_norm=limit)
    assert torch.equal(limited.is_kept, free.is_kept & (free.activations.norm(dim=-1) <= limit))
    dropped = reader.count_dropped(limited, max_norm=limit)
    assert dropped.padding == int((~contexts.is_token).sum())
    assert dropped.special == int((contexts.is_token & (contexts.input_ids <= 2)).sum())
    assert sum(dropped) + int(limited.is_kept.sum()) == contexts.input_ids.numel()


def test_an_activation_that_is_not_finite_fails_the_cycle_instead_of_being_dropped(loaded, monkeypatch):
    batches = []

    def broken(*args, **kwargs):
        activations = run_lower(*args, **kwargs)
        batches.append(activations)
        if len(batches) == 3:
            activations[1, 1] = math.nan
        return activations

    reader = harvester(loaded)
    monkeypatch.setattr("dmsae.activations.run_lower", broken)
    rule = r"model\.layers\.1, in the batch of the evaluation part that begins at context 14"
    with pytest.raises(CycleFailed, match=rule) as caught:
        list(reader.harvest(make_contexts(), part="evaluation"))
    assert caught.value.failure == "non_finite"
    assert caught.value.fields["tensor"] == "model.layers.1"


def test_what_is_not_finite_at_padding_does_no_harm(loaded, monkeypatch):
    def broken_at_padding(*args, **kwargs):
        activations = run_lower(*args, **kwargs)
        activations[0, -1] = math.nan
        return activations

    contexts = make_contexts(n_contexts=1)
    reader = harvester(loaded)
    (whole,) = reader.harvest(contexts)
    monkeypatch.setattr("dmsae.activations.run_lower", broken_at_padding)
    (batch,) = reader.harvest(contexts)
    assert batch.activations[0, -1].isnan().all()
    assert torch.equal(batch.is_kept, whole.is_kept)
    assert not batch.is_kept[0, -1]


def test_the_scale_takes_the_median_first_and_the_rms_of_what_it_leaves():
    norms = torch.tensor([3.0, 4.0, 5.0, 4.0, 1000.0])
    config = ActivationConfig(layer=0, max_norm_multiple=10.0)
    scale = measure_scale(norms, config)
    assert scale.median_norm == 4
    assert scale.rms == pytest.approx(math.sqrt((9 + 16 + 25 + 16) / 4))
    loud = measure_scale(norms, ActivationConfig(layer=0, max_norm_multiple=None))
    assert loud.rms == pytest.approx(math.sqrt((9 + 16 + 25 + 16 + 1e6) / 5))


def test_the_scale_comes_from_the_first_hundred_thousand_tokens_only():
    norms = torch.full((150_000,), 2.0)
    norms[100_000:] = 7.0
    assert measure_scale(norms, ActivationConfig(layer=0)) == Scale(rms=2.0, median_norm=2.0)


def test_a_model_without_any_activation_fails_instead_of_dividing_by_zero():
    with pytest.raises(CycleFailed) as caught:
        measure_scale(torch.zeros(10), ActivationConfig(layer=0))
    assert caught.value.failure == "non_finite"


def test_collecting_stops_at_the_batch_that_reaches_the_number(loaded):
    read = []

    def watched():
        for batch in harvester(loaded).harvest(make_contexts()):
            read.append(batch)
            yield batch

    collected = collect(watched(), n_tokens=60, part="attribution")
    n_kept = [int(batch.is_kept.sum()) for batch in collected]
    assert sum(n_kept[:-1]) < 60 <= sum(n_kept)
    assert len(read) == len(collected)


def test_a_part_with_too_few_tokens_is_exhausted_with_both_numbers(loaded):
    batches = list(harvester(loaded).harvest(make_contexts()))
    n_kept = int(joined(batches, "is_kept").sum())
    with pytest.raises(
        CycleFailed, match=rf"evaluation\.n_tokens = 9999: .* holds {n_kept} tokens"
    ) as caught:
        collect(batches, n_tokens=9999, part="evaluation")
    assert (caught.value.failure, caught.value.param) == ("dataset_exhausted", "evaluation.n_tokens")


def test_a_norm_limit_is_a_multiple_of_the_median_or_none():
    scale = Scale(rms=1.0, median_norm=3.0)
    assert norm_limit(scale, ActivationConfig(layer=0, max_norm_multiple=2.0)) == 6
    assert norm_limit(scale, ActivationConfig(layer=0, max_norm_multiple=None)) == math.inf
