"""Wake-ups over a real broker: where they go, and what a dead, frozen or evicting one costs."""

import json
import time
from collections.abc import Iterator

import pytest
import redis
from celery import Celery
from pydantic import SecretStr

from api.__main__ import refuse_evicting_broker
from dmsae.errors import InvalidConfig, Unavailable
from dmsae.service.queue import (
    TASK_NAME,
    WakeUps,
    check_broker,
    class_queue,
    make_celery,
    ping_broker,
    worker_queue,
)
from dmsae.service.settings import Settings
from tests.conftest import RunningServices

NOBODY = SecretStr("redis://:password@127.0.0.1:9/0")


@pytest.fixture
def client(settings: Settings) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(settings.broker_url.get_secret_value()) as client:
        client.flushall()
        yield client
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")


@pytest.fixture
def app(settings: Settings) -> Celery:
    return make_celery(settings.broker_url)


def test_a_wake_up_names_a_class_and_goes_to_its_queue(app: Celery, client: "redis.Redis") -> None:
    wake_ups = WakeUps(app)
    assert wake_ups.send_wake_up("cpu")
    assert wake_ups.wake_worker("host.cpu-0", "cpu")
    for queue in (class_queue("cpu"), worker_queue("host.cpu-0")):
        message = json.loads(client.lpop(queue))  # type: ignore[arg-type]
        assert message["headers"]["task"] == TASK_NAME
        assert message["headers"]["argsrepr"] == "['cpu']"
        assert message["headers"]["ignore_result"] is True
        assert message["content-type"] == "application/json"
    assert wake_ups.n_failed == 0


def test_a_frozen_broker_costs_seconds_and_is_counted(
    app: Celery, services: RunningServices, settings: Settings
) -> None:
    wake_ups, unconnected = WakeUps(app), WakeUps(make_celery(settings.broker_url))
    assert wake_ups.send_wake_up("cpu")
    services.valkey.suspend()
    try:
        for sender in (wake_ups, unconnected):
            begun = time.monotonic()
            assert not sender.send_wake_up("cpu")
            assert time.monotonic() - begun < 4
        assert not ping_broker(settings.broker_url)
    finally:
        services.valkey.resume()
    assert (wake_ups.n_failed, unconnected.n_failed) == (1, 1)
    assert wake_ups.send_wake_up("cpu")
    assert ping_broker(settings.broker_url)


def test_a_broker_that_is_not_there_costs_little_and_is_counted() -> None:
    wake_ups = WakeUps(make_celery(NOBODY))
    begun = time.monotonic()
    assert not wake_ups.send_wake_up("cpu")
    assert time.monotonic() - begun < 4
    assert wake_ups.n_failed == 1
    with pytest.raises(Unavailable):
        check_broker(NOBODY)


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
def test_a_broker_that_may_evict_wake_ups_is_refused_by_api_and_worker(
    client: "redis.Redis", settings: Settings, policy: str
) -> None:
    client.config_set("maxmemory-policy", policy)
    for refuse in (lambda: check_broker(settings.broker_url), lambda: refuse_evicting_broker(settings)):
        with pytest.raises(InvalidConfig) as refused:
            refuse()
        [problem] = refused.value.problems
        assert (problem.param, problem.value) == ("maxmemory-policy", policy)
        assert "noeviction" in problem.rule


def test_a_broker_that_evicts_only_what_expires_is_accepted_since_no_wake_up_does(
    app: Celery, client: "redis.Redis", settings: Settings
) -> None:
    for policy in ("noeviction", "volatile-lru", "volatile-ttl"):
        client.config_set("maxmemory-policy", policy)
        check_broker(settings.broker_url)
    assert WakeUps(app).send_wake_up("cpu")
    keys = client.keys("*")
    assert class_queue("cpu").encode() in keys  # type: ignore[operator]
    assert [client.ttl(key) for key in keys] == [-1] * len(keys)  # type: ignore[union-attr, arg-type]


def test_an_api_whose_broker_is_away_starts_all_the_same(settings: Settings) -> None:
    refuse_evicting_broker(settings.model_copy(update={"broker_url": NOBODY}))


def test_wake_ups_pile_up_only_so_far_and_never_expire(
    app: Celery, client: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmsae.service.queue.MOST_WAITING", 3)
    wake_ups = WakeUps(app)
    assert all(wake_ups.send_wake_up("cpu") for _ in range(5))
    assert wake_ups.wake_worker("host.cpu-0", "cpu")
    assert client.llen(class_queue("cpu")) == 3
    assert client.llen(worker_queue("host.cpu-0")) == 1
    assert json.loads(client.lpop(class_queue("cpu")))["headers"]["expires"] is None  # type: ignore[arg-type]


def test_a_full_broker_costs_nothing_but_the_wake_up(app: Celery, client: "redis.Redis") -> None:
    client.config_set("maxmemory", "1")
    wake_ups = WakeUps(app)
    assert not wake_ups.send_wake_up("cpu")
    assert wake_ups.n_failed == 1
    client.config_set("maxmemory", "0")
    assert wake_ups.send_wake_up("cpu")
