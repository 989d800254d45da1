"""A key's requests are counted in a bucket that fills evenly."""

from api import rates
from api.rates import Buckets


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_and_then_as_much_as_flows_in() -> None:
    clock = Clock()
    buckets = Buckets(clock)
    assert [buckets.take("a", per_s=2, burst=3) for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("b", per_s=2, burst=3) == 0
    clock.now += 0.5
    assert [buckets.take("a", per_s=2, burst=3) for _ in range(2)] == [0, 0.5]
    clock.now += 1000
    assert [buckets.take("a", per_s=2, burst=3) for _ in range(4)] == [0, 0, 0, 0.5]


def test_a_refused_request_takes_nothing() -> None:
    clock = Clock()
    buckets = Buckets(clock)
    assert [buckets.take("a", per_s=1, burst=1) > 0 for _ in range(50)] == [False] + [True] * 49
    clock.now += 1
    assert buckets.take("a", per_s=1, burst=1) == 0


def test_a_rate_of_zero_is_no_limit() -> None:
    buckets = Buckets(Clock())
    assert {buckets.take("a", per_s=0, burst=1) for _ in range(100)} == {0}


def test_only_buckets_that_would_be_full_are_forgotten(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(rates, "MOST_BUCKETS", 3)
    clock = Clock()
    buckets = Buckets(clock)
    for name in ("a", "b", "c"):
        buckets.take(name, per_s=1, burst=1)
    clock.now += 0.5
    buckets.take("d", per_s=1, burst=1)
    assert buckets.take("a", per_s=1, burst=1) > 0
    clock.now += 10
    buckets.take("e", per_s=1, burst=1)
    assert buckets.take("a", per_s=1, burst=1) == 0
