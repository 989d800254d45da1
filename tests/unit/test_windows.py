"""How training comes by its activations, window by window."""

import threading

import pytest
import torch

from dmsae.activations import Dropped
from dmsae.errors import CycleFailed
from dmsae.hooks import run_lower
from dmsae.rounding import round_to_half
from dmsae.windows import Windows, lay_windows
from tests.harvesting import harvester, make_contexts, make_source
from tests.tiny import tiny_loaded

PLENTY = 2**31


@pytest.fixture(scope="module")
def loaded():
    return tiny_loaded()


def assert_same_window(one, other):
    for mine, theirs in zip((*one.tokens, one.norms), (*other.tokens, other.norms), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("n_contexts", "sizes"), [(0, []), (5, [5]), (10, [10]), (19, [19]), (20, [10, 10]), (37, [10, 10, 17])]
)
def test_every_window_has_at_least_its_size_unless_the_whole_part_is_smaller(n_contexts, sizes):
    windows = lay_windows(n_contexts, 10)
    assert [window.stop - window.start for window in windows] == sizes
    assert [row for window in windows for row in range(n_contexts)[window]] == list(range(n_contexts))


def test_a_window_holds_the_rounded_activations_of_its_tokens_in_order(loaded):
    contexts = make_contexts(800)
    windows = Windows(make_source(loaded, contexts), max_resident_bytes=PLENTY)
    batches = harvester(loaded).harvest(contexts)
    expected = torch.cat([batch.activations[batch.is_kept] for batch in batches])
    found = torch.cat([windows.get(window).tokens.float() for window in range(3)])
    assert len(windows) == 3
    torch.testing.assert_close(found, round_to_half(expected).float(), rtol=1e-3, atol=1e-5)
    norms = torch.cat([windows.norms(window) for window in range(3)])
    torch.testing.assert_close(norms, found.norm(dim=-1))
    assert 0 < windows.usage.error.relative < 2**-11


def test_a_window_is_rounded_from_what_the_model_gave(loaded):
    """Whatever is rounded is rounded once: a window's halves are those of its own batches."""
    contexts = make_contexts(7)
    window = make_source(loaded, contexts).read(0)
    (batch,) = harvester(loaded).harvest(contexts)
    assert torch.equal(window.tokens.halves, round_to_half(batch.activations[batch.is_kept]).halves)


@pytest.mark.parametrize("max_resident_bytes", [0, 200_000, PLENTY])
@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_window_has_the_same_bits_whether_kept_harvested_again_or_made_ready(
    loaded, max_resident_bytes, is_ahead
):
    plain = Windows(make_source(loaded), max_resident_bytes=PLENTY)
    windows = Windows(make_source(loaded), max_resident_bytes=max_resident_bytes)
    order = (2, 0, 1, 1, 0, 2)
    for window, then in zip(order, (*order[1:], None), strict=True):
        assert_same_window(windows.get(window, then=then if is_ahead else None), plain.get(window))
    windows.close()


def test_no_more_than_a_few_windows_are_in_memory_however_long_a_text_is_streamed(loaded):
    source = make_source(loaded, make_contexts(256 * 12))
    windows = Windows(source, max_resident_bytes=0)
    n_most = 0
    for _ in range(2):
        for window in range(12):
            windows.get(window, then=(window + 1) % 12)
            n_most = max(n_most, len(windows._resident) + len(windows._pending))
    windows.close()
    assert n_most == 2


def test_the_first_windows_stay_in_memory_as_far_as_there_is_room(loaded):
    source = make_source(loaded, make_contexts(256 * 6))
    windows = Windows(source, max_resident_bytes=int(3.5 * source.read(0).n_bytes))
    n_harvested = []
    for _ in range(2):
        for window in range(6):
            windows.get(window)
            n_harvested.append(windows.usage.n_tokens_harvested)
    assert n_harvested[5] == source.n_tokens == n_harvested[7] < n_harvested[8]


def test_the_next_window_is_harvested_while_nobody_asks_for_it(loaded, monkeypatch):
    begun = threading.Event()
    source = make_source(loaded)
    read = source.read

    def watched(window, **options):
        if window == 1:
            begun.set()
        return read(window, **options)

    monkeypatch.setattr(source, "read", watched)
    windows = Windows(source, max_resident_bytes=PLENTY)
    windows.get(0, then=1)
    assert begun.wait(10)
    windows.get(1)
    assert windows.usage.n_tokens_harvested == len(windows.norms(0)) + len(windows.norms(1))
    windows.close()


def test_closing_ends_what_is_made_ready_in_the_middle_of_a_window(loaded, monkeypatch):
    begun, may_go_on, n_batches = threading.Event(), threading.Event(), []

    def slow(*args, **kwargs):
        n_batches.append(1)
        if len(n_batches) > 3:
            begun.set()
            assert may_go_on.wait(10)
        return run_lower(*args, **kwargs)

    threads = set(threading.enumerate())
    source = make_source(loaded, make_contexts(600), model_batch_contexts=100)
    windows = Windows(source, max_resident_bytes=PLENTY)
    monkeypatch.setattr("dmsae.activations.run_lower", slow)
    windows.get(0, then=1)
    assert begun.wait(10)
    threading.Timer(0.2, may_go_on.set).start()
    windows.close()
    assert len(n_batches) == 4
    assert set(threading.enumerate()) <= threads
    assert len(windows.get(1).norms) > 0
    windows.close()


@pytest.mark.parametrize("is_ahead", [False, True])
def test_an_activation_that_is_not_finite_names_the_batch_and_the_tensor(loaded, monkeypatch, is_ahead):
    n_calls = []

    def broken(*args, **kwargs):
        activations = run_lower(*args, **kwargs)
        n_calls.append(1)
        if len(n_calls) == 4:
            activations[1, 1] = float("inf")
        return activations

    source = make_source(loaded, make_contexts(600), model_batch_contexts=100)
    monkeypatch.setattr("dmsae.activations.run_lower", broken)
    windows = Windows(source, max_resident_bytes=PLENTY)
    windows.get(0, then=1 if is_ahead else None)
    with pytest.raises(CycleFailed, match=r"model\.layers\.1.* training part .* context 256") as caught:
        windows.get(1)
    assert caught.value.failure == "non_finite"
    assert (caught.value.fields["tensor"], caught.value.fields["first_context"]) == ("model.layers.1", 256)
    windows.close()


def test_padding_and_special_tokens_are_counted_without_the_model(loaded, monkeypatch):
    contexts = make_contexts(800)
    source = make_source(loaded, contexts)
    n_tokens = [len(source.read(window).norms) for window in range(3)]
    monkeypatch.setattr("dmsae.activations.run_lower", None)
    dropped = [source.count_dropped(window, n_tokens=n) for window, n in enumerate(n_tokens)]
    total = sum(dropped, start=Dropped(0, 0, 0))
    assert total.padding == int((~contexts.is_token).sum())
    assert sum(n_tokens) + sum(total) == contexts.input_ids.numel()
    assert source.n_tokens == sum(n_tokens)
