"""How is a worker woken? Celery's producer over Redis, which carries wake-ups and no state.

A wake-up names a resource class, never a cycle: who receives it claims whatever is best. So a lost one costs
seconds and a surplus one nothing, and sending must never hold up or fail what it follows: a dead or frozen
Redis costs at most about two seconds, is logged and counted.
"""

from typing import Any, Self

import redis
import structlog
from celery import Celery
from celery.app.amqp import AMQP
from kombu import Connection
from kombu.exceptions import OperationalError
from pydantic import SecretStr

from dmsae.errors import FieldProblem, InvalidConfig, Unavailable

log = structlog.get_logger()

TASK_NAME = "run_cycle"
SOCKET_TIMEOUT_S = 2.0
MOST_WAITING = 1000
"""A queue that holds so many wake-ups gets no more: one for each idle worker is enough, whatever their age.

They carry no expiry: that would compare the clocks of two hosts.
"""
RECONNECT_S = 1
EVICTS_ANY = "allkeys-"
"""How the policies begin under which Redis, once full, drops keys that never expire."""


class PromptConnection(Connection):
    """One that is tried again every second or two; kombu's own waits longer each time, up to 30 s."""

    def ensure_connection(self, *args: Any, **options: Any) -> Self:
        """Connect, however often that takes."""
        often = {"interval_start": RECONNECT_S, "interval_step": RECONNECT_S, "interval_max": RECONNECT_S}
        return super().ensure_connection(*args, **{**options, **often})


class PromptAMQP(AMQP):
    """Has workers connect so."""

    Connection = PromptConnection


def class_queue(resource_class: str) -> str:
    """Name the queue that all workers of a resource class read."""
    return f"class.{resource_class}"


def worker_queue(worker_id: str) -> str:
    """Name the queue that one worker alone reads."""
    return f"worker.{worker_id}"


def celery_options(broker_url: str) -> dict[str, Any]:
    """Give the settings of producer and worker: no results, JSON only, early ack, no prefetch, no retries."""
    return {
        "broker_url": broker_url,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,  # a full broker refuses what it is asked, and must end no worker
        "broker_connection_timeout": SOCKET_TIMEOUT_S,
        "broker_transport_options": {
            "socket_timeout": SOCKET_TIMEOUT_S,
            "socket_connect_timeout": SOCKET_TIMEOUT_S,
            "socket_keepalive": True,
            "retry_on_timeout": False,
            "max_retries": 0,
            "connect_retries_timeout": SOCKET_TIMEOUT_S,
        },
        "task_publish_retry": False,
        "broker_pool_limit": 64,
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        "result_backend": None,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_acks_late": False,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_enable_prefetch_count_reduction": False,
        "worker_cancel_long_running_tasks_on_connection_loss": True,  # of tasks with late ack: ours have none
        "worker_redirect_stdouts": False,
        "worker_hijack_root_logger": False,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
    }


def make_celery(broker_url: SecretStr) -> Celery:
    """Make an application that sends wake-ups."""
    app = Celery("dmsae", set_as_current=False, amqp=PromptAMQP)
    app.conf.update(celery_options(broker_url.get_secret_value()))
    return app


class WakeUps:
    """Sends wake-ups and counts those that could not be sent; never raises."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self.n_failed = 0

    def send_wake_up(self, resource_class: str) -> bool:
        """Tell some worker of this class that there may be work; false if the broker did not take it."""
        return self._send(class_queue(resource_class), resource_class)

    def wake_worker(self, worker_id: str, resource_class: str) -> bool:
        """Tell this very worker that there may be work; false if the broker did not take it."""
        return self._send(worker_queue(worker_id), resource_class)

    def _send(self, queue: str, resource_class: str) -> bool:
        try:
            with self._app.producer_pool.acquire(block=True) as producer:
                channel: Any = producer.channel
                if channel.client.llen(queue) >= MOST_WAITING:
                    return True
                self._app.send_task(
                    TASK_NAME,
                    args=[resource_class],
                    queue=queue,
                    producer=producer,
                    ignore_result=True,
                    retry=False,
                )
        except (OperationalError, redis.RedisError, OSError) as error:
            self.n_failed += 1
            log.warning("wake_up_failed", queue=queue, n_failed=self.n_failed, error=type(error).__name__)
            return False
        return True


def _client(broker_url: SecretStr) -> redis.Redis:
    return redis.Redis.from_url(
        broker_url.get_secret_value(),
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
    )


def ping_broker(broker_url: SecretStr) -> bool:
    """Ask whether the broker answers."""
    try:
        with _client(broker_url) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError):
        return False


def check_broker(broker_url: SecretStr) -> None:
    """Refuse a broker that may throw queued messages away to make room.

    A `volatile-*` policy may not: it drops only what expires, and no queue does.

    Raises:
        InvalidConfig: its `maxmemory-policy` evicts any key, whether it has a `maxmemory` by now or not.
        Unavailable: it does not answer.
    """
    try:
        with _client(broker_url) as client:
            told: dict[str, Any] = client.info("memory")
    except redis.ResponseError as error:
        log.warning("broker_policy_unknown", error=type(error).__name__)
        return
    except (redis.RedisError, OSError) as error:
        raise Unavailable("The broker does not answer; is DMSAE_BROKER_URL right?") from error
    policy = str(told.get("maxmemory_policy", "noeviction"))
    if policy.startswith(EVICTS_ANY):
        rule = "the broker of DMSAE_BROKER_URL must not evict queued messages: set it to noeviction"
        raise InvalidConfig([FieldProblem("maxmemory-policy", policy, rule)])
