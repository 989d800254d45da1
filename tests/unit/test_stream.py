"""In which order training sees the activations."""

from itertools import groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmsae.activations import ContextBatch, Dropped, Scale
from dmsae.config import TrainingConfig
from dmsae.errors import CycleFailed
from dmsae.rounding import RoundingError, round_to_half
from dmsae.stream import Order, TokenStream
from dmsae.survey import Survey, Tally, token_budget
from dmsae.windows import Window

LOUD = 1000.0


class NumberedWindows:
    """Stands for windows and their source: the first number of each token is its place in the text."""

    def __init__(self, window_tokens):
        starts = [sum(window_tokens[:i]) for i in range(len(window_tokens))]
        self.store, self.source = None, self
        self.read, self.wanted_next = [], []
        self.contents = []
        for start, n in zip(starts, window_tokens, strict=True):
            numbers = torch.stack([torch.arange(start, start + n).float(), torch.zeros(n)], dim=1)
            self.contents.append(Window(round_to_half(numbers), torch.zeros(n), RoundingError()))

    def __len__(self):
        return len(self.contents)

    def norms(self, window):
        return self.get(window).norms

    def get(self, window, *, then=None):
        self.read.append(window)
        self.wanted_next.append(then)
        return self.contents[window]

    def count_dropped(self, _window, *, n_tokens):
        return Dropped(0, 0, 0 * n_tokens)


def make_stream(window_tokens, *, rms=1.0, order=None, windows=None, attribution=(), **training):
    """Give a stream over windows of so many tokens, none of them counted before."""
    config = TrainingConfig(**{"batch_tokens": 8, **training})
    windows = windows or NumberedWindows(window_tokens)
    budget = token_budget(config, n_available=sum(window_tokens))
    survey = Survey(Scale(rms, 1.0), Tally(windows, max_norm=LOUD), budget)
    return TokenStream(windows, survey, config, order=order or Order(0, 0), attribution=attribution)


def places(stream):
    return [batch[:, 0].int().tolist() for batch in stream]


@given(
    window_tokens=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(sum),
    batch_tokens=st.integers(1, 16),
    epochs=st.integers(1, 3),
    data=st.data(),
)
def test_every_epoch_reads_each_of_the_first_tokens_once(window_tokens, batch_tokens, epochs, data):
    available = sum(window_tokens)
    budget = data.draw(st.integers(min(batch_tokens, available * epochs), available * epochs))
    if budget < batch_tokens:
        return
    stream = make_stream(window_tokens, n_tokens=budget, epochs=epochs, batch_tokens=batch_tokens)
    batches = places(stream)
    assert len(batches) == stream.n_steps == budget // batch_tokens
    assert all(len(batch) == batch_tokens for batch in batches)
    assert stream.n_tokens == stream.n_steps * batch_tokens
    seen = [place for batch in batches for place in batch]
    for start in range(0, len(seen) - available + 1, available):
        assert sorted(seen[start : start + available]) == list(range(available))
    rest = seen[len(seen) // available * available :]
    assert len(set(rest)) == len(rest)
    assert all(place < budget - len(seen) + len(rest) for place in rest)


@given(
    window_tokens=st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(lambda n: sum(n) >= 4),
    epochs=st.integers(1, 3),
    n_counted=st.integers(0, 5),
    data=st.data(),
)
def test_the_order_is_the_same_however_much_was_counted_before(window_tokens, epochs, n_counted, data):
    budget = data.draw(st.integers(4, sum(window_tokens) * epochs))
    make = {"n_tokens": budget, "epochs": epochs, "batch_tokens": 4}
    counted = make_stream(window_tokens, **make)
    for window in range(min(n_counted, len(window_tokens))):
        counted._survey.tally.count(window)
    assert places(counted) == places(make_stream(window_tokens, **make))


def test_windows_are_read_as_the_text_has_them_and_each_is_wanted_before_its_turn():
    windows = NumberedWindows([16, 16, 16])
    list(make_stream([16, 16, 16], windows=windows, epochs=2))
    assert [window for window, _ in groups(windows.read)] == [0, 1, 2, 0, 1, 2]
    later = [then for then, _ in groups([then for then in windows.wanted_next if then is not None])]
    assert later == [1, 2, 0, 1, 2]


def groups(values):
    return [(key, len(list(found))) for key, found in groupby(values)]


def test_no_window_is_wanted_that_the_budget_does_not_reach():
    windows = NumberedWindows([16, 16, 16])
    list(make_stream([16, 16, 16], windows=windows, n_tokens=30))
    assert set(windows.read) == {0, 1}
    assert 2 not in windows.wanted_next


def test_without_a_budget_all_tokens_are_read_in_every_epoch():
    stream = make_stream([30, 20, 14], epochs=3)
    assert stream.n_tokens == 3 * 64


def test_tokens_are_permuted_but_only_within_their_window():
    batches = places(make_stream([64, 64], batch_tokens=64))
    assert [min(batch) // 64 for batch in batches] == [0, 1]
    assert all(batch != sorted(batch) for batch in batches)
    assert all(len({place // 64 for place in batch}) == 1 for batch in batches)


def test_cycles_and_seeds_and_epochs_read_the_same_tokens_in_other_orders():
    orders = [
        [place for batch in places(make_stream([40, 40], order=order, n_tokens=48)) for place in batch]
        for order in (Order(0, 0), Order(0, 1), Order(1, 0))
    ]
    assert all(sorted(order) == list(range(48)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    first, second = torch.tensor(places(make_stream([40], epochs=2))).view(2, 40).tolist()
    assert first != second


def test_the_same_order_gives_the_same_batches():
    assert places(make_stream([40, 24])) == places(make_stream([40, 24]))


@pytest.mark.parametrize("step", range(9))
def test_stopped_and_resumed_is_never_stopped(step):
    whole = places(make_stream([13, 40, 11, 8]))
    stopped = make_stream([13, 40, 11, 8])
    before = [next(stopped)[:, 0].int().tolist() for _ in range(step)]
    resumed = make_stream([13, 40, 11, 8])
    resumed.load_state_dict(stopped.state_dict())
    assert before + places(resumed) == whole


def test_a_resumed_stream_reads_no_window_only_to_find_its_place():
    stopped = make_stream([16, 16, 16, 16])
    for _ in range(7):
        next(stopped)
    windows = NumberedWindows([16, 16, 16, 16])
    resumed = make_stream([16, 16, 16, 16], windows=windows)
    resumed.load_state_dict(stopped.state_dict())
    next(resumed)
    assert set(windows.read) == {3}


def test_any_step_can_be_sought():
    stream = make_stream([13, 40, 11, 8])
    whole = places(stream)
    for step in (5, 0, 8, 3):
        stream.seek(step)
        assert next(stream)[:, 0].int().tolist() == whole[step]


def test_activations_are_divided_by_the_rms():
    plain, scaled = (torch.cat(list(make_stream([40], rms=rms))) for rms in (1.0, 4.0))
    assert torch.equal(scaled, plain / 4)


def test_tokens_beyond_the_norm_limit_are_never_seen():
    windows = NumberedWindows([40])
    windows.contents[0].norms[::2] = 2 * LOUD
    stream = make_stream([20], windows=windows, batch_tokens=10)
    assert sorted(place for batch in places(stream) for place in batch) == list(range(1, 40, 2))


def test_tokens_that_run_out_because_too_many_are_loud_are_exhausted_with_all_numbers():
    windows = NumberedWindows([40, 40])
    windows.contents[1].norms[:30] = 2 * LOUD
    stream = make_stream([40, 40], windows=windows, n_tokens=80)
    with pytest.raises(CycleFailed, match=r"n_tokens = 80: .* 50 tokens") as caught:
        list(stream)
    assert (caught.value.failure, caught.value.param) == ("dataset_exhausted", "training.n_tokens")


def test_a_budget_beyond_the_data_is_exhausted_with_all_numbers():
    with pytest.raises(CycleFailed, match=r"n_tokens = 200: .* 64 tokens, .*epochs = 3 makes 192") as caught:
        make_stream([40, 24], n_tokens=200, epochs=3)
    assert (caught.value.failure, caught.value.param) == ("dataset_exhausted", "training.n_tokens")


def test_fewer_tokens_than_one_batch_are_exhausted():
    with pytest.raises(CycleFailed, match=r"batch_tokens = 8: the cycle has 5 tokens") as caught:
        make_stream([5])
    assert (caught.value.failure, caught.value.param) == ("dataset_exhausted", "training.batch_tokens")


def numbered_contexts(n_contexts, *, n_positions=5):
    """Give the attribution part: places below 0, of which each context keeps all but its first."""
    numbers = -1 - torch.arange(n_contexts * n_positions).view(n_contexts, n_positions)
    activations = torch.stack([numbers.float(), torch.zeros_like(numbers).float()], dim=2)
    is_kept = torch.ones_like(numbers, dtype=torch.bool)
    is_kept[:, 0] = False
    return [ContextBatch(numbers, is_kept, numbers, activations, is_kept)] if n_contexts else []


def threshold_places(stream, n_tokens):
    tokens = stream.for_threshold(n_tokens)
    found = [place for batch in tokens.batches for place in batch[:, 0].int().tolist()]
    assert len(found) == tokens.n_tokens
    return found, tokens.n_attribution


@given(
    window_tokens=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(lambda n: sum(n) >= 8),
    epochs=st.integers(1, 3),
    n_contexts=st.integers(0, 9),
    n_threshold=st.integers(1, 100),
    data=st.data(),
)
def test_the_threshold_is_taken_from_tokens_that_the_cycle_leaves_out_then_from_the_attribution_part(
    window_tokens, epochs, n_contexts, n_threshold, data
):
    available = sum(window_tokens)
    budget = data.draw(st.integers(8, available * epochs))
    attribution = numbered_contexts(n_contexts)
    stream = make_stream(window_tokens, n_tokens=budget, epochs=epochs, attribution=attribution)
    trained = {place for batch in places(stream) for place in batch}
    found, n_attribution = threshold_places(stream, n_threshold)
    n_left_out = min(n_threshold, max(0, available - budget))
    assert len(found) == len(set(found))
    assert not trained & set(found)
    assert sum(place >= 0 for place in found) == n_left_out
    assert n_attribution == len(found) - n_left_out == min(n_threshold - n_left_out, 4 * n_contexts)
    kept = {place for batch in attribution for place in batch.input_ids[batch.is_kept].tolist()}
    assert {place for place in found if place < 0} <= kept


def test_tokens_of_the_threshold_are_at_the_scale_of_training_and_none_is_too_loud():
    windows = NumberedWindows([20, 20])
    windows.contents[1].norms[3:6] = LOUD + 1
    attribution = numbered_contexts(1, n_positions=3)
    stream = make_stream([20, 20], windows=windows, rms=2.0, n_tokens=16, attribution=attribution)
    batches = list(stream.for_threshold(23).batches)
    expected = [*range(16, 23), *range(26, 40), -2, -3]
    assert torch.cat(batches)[:, 0].tolist() == [place / 2 for place in expected]
    assert all(len(batch) <= 8 for batch in batches)


def test_taking_tokens_for_the_threshold_does_not_move_the_stream():
    stream, other = make_stream([30, 30], n_tokens=40), make_stream([30, 30], n_tokens=40)
    first = next(stream)[:, 0].tolist()
    threshold_places(stream, 25)
    assert [first, *(batch[:, 0].tolist() for batch in stream)] == [batch[:, 0].tolist() for batch in other]


def test_tokens_of_the_threshold_are_spread_over_as_many_as_the_scale_is_taken_from(monkeypatch):
    monkeypatch.setattr("dmsae.stream.SCALE_TOKENS", 36)
    windows = NumberedWindows([10] * 5)
    stream = make_stream([10] * 5, windows=windows, n_tokens=16)
    assert threshold_places(stream, 5) == ([16, 20, 24, 28, 32], 0)
    assert 4 not in windows.read
    twice = make_stream([10] * 5, n_tokens=100, epochs=2, attribution=numbered_contexts(4, n_positions=3))
    assert threshold_places(twice, 4) == ([-2, -3, -8, -9], 4)


def test_only_windows_that_the_threshold_needs_are_read(monkeypatch):
    monkeypatch.setattr("dmsae.stream.SCALE_TOKENS", 1)
    windows = NumberedWindows([10, 10, 10, 10, 10])
    stream = make_stream([10] * 5, windows=windows, n_tokens=16)
    threshold_places(stream, 8)
    assert set(windows.read) == {0, 1, 2}
