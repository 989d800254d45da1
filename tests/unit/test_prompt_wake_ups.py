"""Wake-ups hold nobody up: a thread of their own sends them in their order, and counts what fails."""

import threading

import pytest

from dmsae.service.prompt_wake_ups import WakeUpThread
from dmsae.service.queue import MOST_WAITING


class Broker:
    """Takes wake-ups once it is let, and breaks on one class."""

    def __init__(self) -> None:
        self.n_failed = 0
        self.told: list[str] = []
        self.is_there, self.is_asked = threading.Event(), threading.Event()

    def send_wake_up(self, resource_class: str) -> bool:
        self.is_asked.set()
        assert self.is_there.wait(30)
        if resource_class == "broken":
            raise ValueError
        self.told.append(resource_class)
        return True


def test_nobody_waits_for_a_broker_that_hangs_and_all_is_sent_in_order_before_the_end() -> None:
    broker = Broker()
    waking = WakeUpThread(broker)
    assert all(waking.send_wake_up(name) for name in ("cpu", "broken", "gpu"))
    assert broker.is_asked.wait(30)
    assert broker.told == []
    broker.is_there.set()
    waking.close()
    assert broker.told == ["cpu", "gpu"]
    assert broker.n_failed == 1


def test_what_is_more_than_may_wait_is_counted_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmsae.service.prompt_wake_ups.END_S", 0.01)
    broker = Broker()
    waking = WakeUpThread(broker)
    waking.send_wake_up("cpu")
    assert broker.is_asked.wait(30)
    assert all(waking.send_wake_up("cpu") for _ in range(MOST_WAITING))
    assert not waking.send_wake_up("cpu")
    assert broker.n_failed == 1
    waking.close()
    broker.is_there.set()


def test_without_wake_ups_there_is_nothing_to_end() -> None:
    WakeUpThread(Broker()).close()
