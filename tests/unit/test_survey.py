"""The scale of a training part, and how many of its tokens count."""

from types import SimpleNamespace

import pytest
import torch

from dmsae.activation_cache import ActivationCache
from dmsae.activations import Scale, measure_scale
from dmsae.config import ActivationConfig, TrainingConfig
from dmsae.errors import CycleFailed
from dmsae.kept_activations import keep_windows
from dmsae.survey import Tally, survey
from dmsae.windows import Windows
from tests.harvesting import make_contexts, make_source
from tests.tiny import tiny_loaded

PLENTY = 2**31


@pytest.fixture(scope="module")
def loaded():
    return tiny_loaded()


def config(*, max_norm_multiple=10.0, **training):
    return SimpleNamespace(
        activations=ActivationConfig(layer=1, max_norm_multiple=max_norm_multiple),
        training=TrainingConfig(**{"batch_tokens": 8, **training}),
    )


def make_windows(loaded, *, n_contexts=800, max_resident_bytes=PLENTY, store=None):
    source = make_source(loaded, make_contexts(n_contexts))
    return Windows(source, max_resident_bytes=max_resident_bytes, store=store)


def test_all_tokens_are_counted_where_the_budget_is_all_of_them(loaded):
    windows = make_windows(loaded)
    found = survey(windows, config(), scale=None)
    assert len(found.tally.counts) == 3
    assert found.n_tokens + sum(found.dropped) == 800 * 8
    norms = torch.cat([windows.norms(window) for window in range(3)])
    assert found.scale == measure_scale(norms, ActivationConfig(layer=1))


def test_a_given_scale_is_taken_over_as_it_is_and_sets_the_limit(loaded):
    own = survey(make_windows(loaded), config(max_norm_multiple=1.0), scale=None)
    given = Scale(rms=1.0, median_norm=own.scale.median_norm * 0.9)
    found = survey(make_windows(loaded), config(max_norm_multiple=1.0), scale=given)
    assert found.scale == given
    assert found.dropped.norm > own.dropped.norm > 0


def test_windows_that_stay_are_counted_before_training_up_to_the_budget(loaded):
    found = survey(make_windows(loaded), config(n_tokens=10), scale=Scale(1.0, 1e9))
    assert (len(found.tally.counts), found.is_counted) == (1, True)


def test_windows_that_do_not_stay_are_counted_while_training_reads_them(loaded, monkeypatch):
    monkeypatch.setattr("dmsae.survey.SCALE_TOKENS", 100)
    windows = make_windows(loaded, n_contexts=256 * 6, max_resident_bytes=0)
    found = survey(windows, config(n_tokens=windows.source.n_tokens // 2), scale=None)
    assert (len(found.tally.counts), found.is_counted) == (1, False)
    assert windows.usage.n_tokens_harvested < windows.source.n_tokens / 5


@pytest.mark.parametrize("share", [0.6, 0.99])
def test_where_loud_tokens_might_leave_too_few_all_are_counted_before_training(loaded, monkeypatch, share):
    """Half of the tokens exceed the median."""
    monkeypatch.setattr("dmsae.survey.SCALE_TOKENS", 100)
    windows = make_windows(loaded, n_contexts=256 * 6, max_resident_bytes=0)
    settings = config(n_tokens=int(share * windows.source.n_tokens), max_norm_multiple=1.0)
    with pytest.raises(CycleFailed, match=r"training\.n_tokens = \d+: .* holds \d+ tokens") as caught:
        survey(windows, settings, scale=None)
    assert caught.value.failure == "dataset_exhausted"


def test_what_was_counted_once_is_not_counted_again(loaded, tmp_path, monkeypatch):
    cache = ActivationCache(tmp_path, max_bytes=PLENTY)
    source = make_source(loaded)
    first = survey(
        Windows(source, max_resident_bytes=0, store=keep_windows(cache, source)), config(), scale=None
    )
    monkeypatch.setattr("dmsae.windows.Windows.norms", None)
    again = Windows(source, max_resident_bytes=0, store=keep_windows(cache, source))
    assert survey(again, config(), scale=first.scale).tally.counts == first.tally.counts


def test_drops_are_those_of_the_windows_that_a_budget_reaches(loaded):
    tally = Tally(make_windows(loaded), max_norm=1e9)
    tally.count_up_to(None)
    n_first = tally.count(0)
    assert tally.dropped(n_first) == tally.counts[0].dropped
    assert tally.dropped(n_first + 1) == tally.counts[0].dropped + tally.counts[1].dropped
    assert tally.dropped(None) == tally.dropped(10**9)


def test_a_training_part_without_tokens_is_exhausted(loaded):
    with pytest.raises(CycleFailed, match=r"holds no token at all") as caught:
        survey(make_windows(loaded, n_contexts=0), config(), scale=None)
    assert caught.value.failure == "dataset_exhausted"
