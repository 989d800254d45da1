"""Which activations are kept, and at what scale."""

import math

import pytest
import torch

from dmsae.activations import Harvester, Scale, Windows, collect, lay_windows, measure_scale, survey
from dmsae.config import ActivationConfig
from dmsae.contexts import Contexts
from dmsae.errors import CycleFailed
from dmsae.hooks import resolve_hook, run_lower
from dmsae.window_files import KEPT_FOLDERS, open_window_files
from tests.tiny import tiny_loaded

BOS = 0


@pytest.fixture(scope="module")
def loaded():
    return tiny_loaded()


def make_contexts(n_contexts=40, length=8, seed=0):
    """Rows of random tokens; each third row is padded, each second one starts with BOS."""
    input_ids = torch.randint(3, 512, (n_contexts, length), generator=torch.Generator().manual_seed(seed))
    input_ids[::2, 0] = BOS
    is_token = torch.ones(n_contexts, length, dtype=torch.bool)
    is_token[::3, length // 2 :] = False
    documents = (torch.arange(n_contexts) // 4)[:, None].expand(n_contexts, length)
    return Contexts(input_ids, is_token, documents, n_contexts // 4, 0)


def harvester(loaded, **settings):
    config = ActivationConfig(**{"layer": 1, "model_batch_contexts": 7, **settings})
    return Harvester(loaded, resolve_hook(loaded, layer=config.layer, hook=config.hook), config)


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
    def broken(*args, **kwargs):
        activations = run_lower(*args, **kwargs)
        activations[1, 1] = math.nan
        return activations

    reader = harvester(loaded)
    monkeypatch.setattr("dmsae.activations.run_lower", broken)
    with pytest.raises(CycleFailed, match=r"model\.layers\.1") as caught:
        list(reader.harvest(make_contexts()))
    assert caught.value.failure == "non_finite"


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


@pytest.mark.parametrize(
    ("n_contexts", "sizes"), [(0, []), (5, [5]), (10, [10]), (19, [19]), (20, [10, 10]), (37, [10, 10, 17])]
)
def test_every_window_has_at_least_its_size_unless_the_whole_part_is_smaller(n_contexts, sizes):
    windows = lay_windows(n_contexts, 10)
    assert [window.stop - window.start for window in windows] == sizes
    assert [row for window in windows for row in range(n_contexts)[window]] == list(range(n_contexts))


@pytest.mark.parametrize("max_resident_bytes", [0, 200_000, 2**31])
def test_a_window_has_the_same_bits_whether_it_was_kept_or_harvested_again(loaded, max_resident_bytes):
    contexts = make_contexts(n_contexts=800)
    expected = [
        Windows(harvester(loaded), contexts, max_resident_bytes=2**31).tokens(window) for window in range(3)
    ]
    windows = Windows(harvester(loaded), contexts, max_resident_bytes=max_resident_bytes)
    assert len(windows) == 3
    for window in (2, 0, 1, 1, 0, 2):
        assert torch.equal(windows.tokens(window), expected[window])


def test_a_survey_counts_what_is_kept_in_each_window_and_takes_the_scale(loaded):
    contexts = make_contexts(n_contexts=800)
    windows = Windows(harvester(loaded), contexts, max_resident_bytes=2**31)
    found = survey(windows, scale=None, n_tokens=None)
    assert len(found.window_tokens) == 3
    assert sum(found.window_tokens) + sum(found.dropped) == contexts.input_ids.numel()
    norms = torch.cat([windows.tokens(window) for window in range(3)]).norm(dim=-1)
    assert found.scale == measure_scale(norms, windows.harvester.config)


def test_a_given_scale_is_taken_over_as_it_is_and_sets_the_limit(loaded):
    windows = Windows(harvester(loaded, max_norm_multiple=1.0), make_contexts(800), max_resident_bytes=2**31)
    own = survey(windows, scale=None, n_tokens=None)
    given = Scale(rms=1.0, median_norm=own.scale.median_norm * 0.9)
    found = survey(windows, scale=given, n_tokens=None)
    assert found.scale == given
    assert found.dropped.norm > own.dropped.norm > 0


def test_a_survey_stops_where_the_budget_is_reached(loaded):
    windows = Windows(harvester(loaded), make_contexts(800), max_resident_bytes=2**31)
    found = survey(windows, scale=Scale(1.0, 1e9), n_tokens=10)
    assert len(found.window_tokens) == 1


def test_a_training_part_without_tokens_is_exhausted(loaded):
    contexts = make_contexts(0)
    with pytest.raises(CycleFailed) as caught:
        survey(Windows(harvester(loaded), contexts, max_resident_bytes=0), scale=None, n_tokens=None)
    assert caught.value.failure == "dataset_exhausted"


def stored_windows(loaded, tmp_path, contexts, **settings):
    reader = harvester(loaded, **settings)
    store = open_window_files(tmp_path, reader, contexts)
    return Windows(reader, contexts, max_resident_bytes=0, store=store)


def test_windows_kept_on_disk_have_the_same_bits_and_spare_the_model(loaded, tmp_path, monkeypatch):
    contexts = make_contexts(n_contexts=800)
    plain = Windows(harvester(loaded), contexts, max_resident_bytes=2**31)
    expected = [plain.tokens(window) for window in range(3)]
    first = stored_windows(loaded, tmp_path, contexts)
    assert all(torch.equal(first.tokens(window), expected[window]) for window in range(3))
    monkeypatch.setattr("dmsae.activations.run_lower", None)
    second = stored_windows(loaded, tmp_path, contexts)
    assert all(torch.equal(second.tokens(window), expected[window]) for window in range(3))


def test_a_torn_or_deleted_window_is_harvested_again(loaded, tmp_path):
    contexts = make_contexts(n_contexts=800)
    expected = [stored_windows(loaded, tmp_path, contexts).tokens(window) for window in range(3)]
    torn, gone, _whole = sorted(tmp_path.rglob("*.safetensors"))
    torn.write_bytes(torn.read_bytes()[:1000])
    gone.unlink()
    again = stored_windows(loaded, tmp_path, contexts)
    assert all(torch.equal(again.tokens(window), expected[window]) for window in range(3))


def test_other_contexts_layers_or_batches_never_share_a_window_on_disk(loaded, tmp_path):
    contexts = make_contexts()
    stored_windows(loaded, tmp_path, contexts).tokens(0)
    for other, settings in (
        (make_contexts(seed=1), {}),
        (contexts, {"layer": 2}),
        (contexts, {"model_batch_contexts": 8}),
    ):
        expected = Windows(harvester(loaded, **settings), other, max_resident_bytes=0).tokens(0)
        assert torch.equal(stored_windows(loaded, tmp_path, other, **settings).tokens(0), expected)
    assert len(list((tmp_path / "activations").iterdir())) == 4


def test_the_least_recently_used_windows_leave_the_disk(loaded, tmp_path):
    for seed in range(KEPT_FOLDERS + 2):
        stored_windows(loaded, tmp_path, make_contexts(seed=seed)).tokens(0)
    folders = list((tmp_path / "activations").iterdir())
    assert len(folders) == KEPT_FOLDERS


def test_a_part_too_large_to_keep_is_not_kept(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr("dmsae.window_files.MAX_PART_BYTES", 1)
    assert open_window_files(tmp_path, harvester(loaded), make_contexts()) is None
