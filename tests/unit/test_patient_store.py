"""An attempt waits for the object store, but not for ever, and never for one that gives wrong bytes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmsae.errors import NotFound, Unavailable
from dmsae.service.objects import BytesDiffer
from worker import patient_store
from worker.patient_store import DIFFERING_TRIES, PatientStore

FILE = Path("file")


class Moody:
    """A store that fails so often before it answers."""

    def __init__(self, error: Exception, n_failures: int) -> None:
        self.error, self.n_failures, self.n_asked = error, n_failures, 0

    def get_file(self, *_: Any, **__: Any) -> None:
        self.n_asked += 1
        if self.n_asked <= self.n_failures:
            raise self.error


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient_store, "POLL_S", 0.001)
    monkeypatch.setattr(patient_store, "LONGEST_WAIT_S", 0.002)


def get(
    store: Moody, *, patience_s: float = 60.0, has_stopped: Callable[[], bool] = lambda: False
) -> list[str]:
    told: list[str] = []
    patient = PatientStore(
        store,  # type: ignore[arg-type]
        patience_s=patience_s,
        has_stopped=has_stopped,
        tell=lambda error: told.append(error.message),
    )
    patient.get_file("key", FILE, sha256="")
    return told


def test_a_store_that_comes_back_is_told_of_once() -> None:
    store = Moody(Unavailable("It is away."), 7)
    assert get(store) == ["It is away."]
    assert store.n_asked == 8


def test_patience_ends() -> None:
    store = Moody(Unavailable(), 10**9)
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        get(store, patience_s=0.1)
    assert 0.1 <= time.monotonic() - begun < 5
    assert store.n_asked > 2


def test_a_reason_to_stop_ends_it_at_once() -> None:
    store = Moody(Unavailable(), 10**9)
    with pytest.raises(Unavailable):
        get(store, has_stopped=lambda: store.n_asked >= 3)
    assert store.n_asked == 3


def test_wrong_bytes_are_fetched_again_a_few_times_alone() -> None:
    assert get(Moody(BytesDiffer(), DIFFERING_TRIES - 1)) != []
    store = Moody(BytesDiffer(), 10**9)
    with pytest.raises(BytesDiffer):
        get(store)
    assert store.n_asked == DIFFERING_TRIES


def test_what_is_not_there_is_not_waited_for() -> None:
    store = Moody(NotFound(), 10**9)
    with pytest.raises(NotFound):
        get(store)
    assert store.n_asked == 1
