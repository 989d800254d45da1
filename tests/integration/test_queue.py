"""Wake-ups over a real broker: where they go, and what a dead, frozen or evicting one costs."""

import json
import time
from collections.abc import Iterator

import pytest
import redis
from celery import Celery
from pydantic import SecretStr

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


def test_a_broker_that_evicts_is_refused(client: "redis.Redis", settings: Settings) -> None:
    check_broker(settings.broker_url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    check_broker(settings.broker_url)
    client.config_set("maxmemory", "100mb")
    with pytest.raises(InvalidConfig, match="noeviction"):
        check_broker(settings.broker_url)
    client.config_set("maxmemory-policy", "noeviction")
    check_broker(settings.broker_url)
