"""When a worker is to end by itself."""

import threading
import time

import pytest

from dmsae.errors import InvalidConfig
from dmsae.service.settings import Settings
from worker import draining
from worker.__main__ import celery_arguments
from worker.draining import Grace, parse_runtime


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("110m", 6600), ("2h", 7200), ("1d", 86_400), ("2:00:00", 7200), ("1-12:00:30", 129_630)],
)
def test_a_runtime_is_read_as_people_and_slurm_write_it(text: str, seconds: float) -> None:
    assert parse_runtime(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "1:00", "2:60:00", "-1h", "1.5h", "h", "1-2", "2:00:00h"])
def test_a_runtime_without_a_unit_is_refused_by_its_rule(text: str) -> None:
    with pytest.raises(InvalidConfig, match="max_runtime"):
        parse_runtime(text)


def test_the_limit_reaches_celery() -> None:
    assert celery_arguments("cpu:0", max_runtime_s=90.0)[-2:] == ["--max-runtime-s", "90.0"]
    assert "--max-runtime-s" not in celery_arguments("cpu:0")


def test_it_ends_so_early_that_all_is_handed_back_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(draining, "stop_this_worker", ended.set)
    settings = Settings.model_construct(drain_grace_s=20.0, kill_grace_s=3.0)
    started = time.monotonic()
    draining.stop_after(28.2, settings)
    assert ended.wait(5)
    assert 0.1 < time.monotonic() - started < 3
    late = draining.stop_after(60.0, settings)
    assert late.interval > 30
    late.cancel()


def test_a_grace_begins_when_it_is_first_looked_at_after_the_worker_was_told_to_end() -> None:
    told = threading.Event()
    grace = Grace(told, 0.2)
    time.sleep(0.3)
    assert not grace.is_over
    told.set()
    assert not grace.is_over
    time.sleep(0.3)
    assert grace.is_over
