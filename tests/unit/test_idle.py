"""What an idle worker does about its broker: wake itself, look by itself, wait, or leave."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from dmsae.errors import Unavailable
from worker.idle import DEAF_STATUS, IdleTimer

DEAF_AFTER_S = 60.0


@dataclass
class Machine:
    """A worker whose broker and clock are told what to do."""

    monkeypatch: pytest.MonkeyPatch
    takes: bool = True
    answers: bool = True
    now: float = 1000.0
    did: list[str] = field(default_factory=list)

    def timer(self) -> IdleTimer:
        self.monkeypatch.setattr("worker.idle.time", SimpleNamespace(monotonic=lambda: self.now))
        self.monkeypatch.setattr("worker.idle.ping_broker", lambda _: self.answers)
        self.monkeypatch.setattr("worker.idle.note_alive", lambda _: None)
        runtime: Any = SimpleNamespace(
            worker=SimpleNamespace(id="here.cpu-0", resource_class="cpu", device="cpu:0"),
            settings=SimpleNamespace(deaf_after_s=DEAF_AFTER_S, broker_url="redis://"),
            wake_ups=SimpleNamespace(wake_worker=lambda *_: self.takes, n_failed=0),
            database=SimpleNamespace(run=self._unavailable),
        )
        return IdleTimer(
            runtime,
            look=lambda: self.did.append("look"),
            leave=lambda status: self.did.append(f"leave {status}"),
            drain=lambda: self.did.append("drain"),
        )

    def tick(self, timer: IdleTimer, *, after_s: float) -> list[str]:
        self.now += after_s
        timer.tick()
        return self.did

    @staticmethod
    def _unavailable(_: object) -> None:
        raise Unavailable


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_a_worker_that_is_heard_stays_and_one_that_hears_nothing_leaves(machine: Machine) -> None:
    timer = machine.timer()
    for _ in range(20):
        assert machine.tick(timer, after_s=50) == []
        timer.heard()
        timer.rest()
    assert machine.tick(timer, after_s=DEAF_AFTER_S) == []
    assert machine.tick(timer, after_s=1) == [f"leave {DEAF_STATUS}"]


def test_a_busy_worker_neither_leaves_nor_looks_however_long_it_works(machine: Machine) -> None:
    timer = machine.timer()
    timer.heard()
    machine.takes = False
    assert machine.tick(timer, after_s=100_000) == []


def test_while_the_broker_is_away_a_worker_waits_and_its_silence_counts_from_then(machine: Machine) -> None:
    timer = machine.timer()
    machine.takes = machine.answers = False
    for _ in range(20):
        assert machine.tick(timer, after_s=50) == []
    machine.takes = machine.answers = True
    assert machine.tick(timer, after_s=DEAF_AFTER_S) == []
    assert machine.tick(timer, after_s=1) == [f"leave {DEAF_STATUS}"]


def test_while_the_broker_answers_but_takes_no_wake_up_a_worker_looks_for_itself(machine: Machine) -> None:
    timer = machine.timer()
    machine.takes = False
    assert machine.tick(timer, after_s=10) == ["look"]
    assert machine.tick(timer, after_s=1000) == ["look", "look"]
