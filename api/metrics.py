"""How do the numbers of the service and of this process become what Prometheus reads?

`dmsae_api_*` and `process_*` are of the process that answers, as is `dmsae_database_up`. All else comes from
Postgres and is of the whole service, so that each API process tells the same: take one of them, or their
maximum, never their sum. No label holds anything that a client may choose freely.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, cast

from anyio import CapacityLimiter
from fastapi import Depends, Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from api.metrics_access import ProvenKeys
from dmsae.errors import FAILURES
from dmsae.service.database import Database
from dmsae.service.fresh_numbers import FreshNumbers
from dmsae.service.queue import WakeUps
from dmsae.service.queue_metrics import QueueNumbers
from dmsae.service.settings import Settings
from dmsae.service.tables import OUTCOMES
from dmsae.service.tallies import ACTIONS, Action

Family = CounterMetricFamily | GaugeMetricFamily

CLASSES = ("cpu", "gpu")
"""Told of even while there is nothing to tell, so that an alert sees the first of each."""
RANKS = ("high", "normal", "low")
DUTIES: dict[str, Action] = {"sweep": "swept", "clean": "cleaned"}
SENDERS: dict[str, Action] = {"sweeper": "wake_up_failed_sweeper", "worker": "wake_up_failed_worker"}
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
OTHER = "other"


class Metrics:
    """What one API process tells, and what it counts of its own."""

    def __init__(self, settings: Settings, database: Database, wake_ups: WakeUps) -> None:
        self.registry = CollectorRegistry()
        self.numbers = FreshNumbers(settings)
        self.limiter = CapacityLimiter(4)
        """Threads of their own: it answers while all others wait for a part that hangs."""
        self.proven = ProvenKeys()
        self.requests = Counter(
            "dmsae_api_requests",
            "HTTP requests answered by this process.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "dmsae_api_request_seconds",
            "From a request to the first byte of its answer; without those that asked to wait.",
            ("method", "route"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_progress = Gauge(
            "dmsae_api_requests_in_progress", "HTTP requests in hand, streams too.", registry=self.registry
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(ProcessNumbers(database, wake_ups))
        self.registry.register(ServiceNumbers(self.numbers, lease_s=settings.lease_s))

    def text(self) -> bytes:
        """Give all of it in Prometheus's text format."""
        return generate_latest(self.registry)


async def get_metrics(request: Request) -> Metrics:
    """Give what the application that serves this request counts."""
    return cast("Metrics", request.app.state.metrics)


MetricsOf = Annotated[Metrics, Depends(get_metrics)]


class ProcessNumbers(Collector):
    """What this process knows without asking anybody."""

    def __init__(self, database: Database, wake_ups: WakeUps) -> None:
        self._database = database
        self._wake_ups = wake_ups

    def describe(self) -> Iterable[Family]:
        """Name nothing: the registry then need not ask at its start."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Tell of the connections to Postgres, and of wake-ups that the broker did not take."""
        use = self._database.pool_use()
        connections = GaugeMetricFamily(
            "dmsae_api_database_connections", "Connections of this process to Postgres.", labels=("state",)
        )
        connections.add_metric(("in_use",), use.n_in_use)
        connections.add_metric(("idle",), use.n_idle)
        yield connections
        most = "Connections that this process may have at once."
        yield GaugeMetricFamily("dmsae_api_database_connections_max", most, value=use.n_most)
        failed = "Wake-ups of workers that the broker did not take from this process."
        yield CounterMetricFamily("dmsae_api_wake_ups_failed", failed, value=self._wake_ups.n_failed)


class ServiceNumbers(Collector):
    """What Postgres knows; while it is away, only that."""

    def __init__(self, numbers: FreshNumbers, *, lease_s: float) -> None:
        self._numbers = numbers
        self._lease_s = lease_s

    def describe(self) -> Iterable[Family]:
        """Name nothing: the registry then need not ask at its start."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Tell where queue, attempts, workers and sweepers stand."""
        numbers = self._numbers.read()
        up = "Whether Postgres answered this process; without it all numbers of the service are missing."
        yield GaugeMetricFamily("dmsae_database_up", up, value=numbers is not None)
        if numbers is not None:
            yield from queue_families(numbers)
            yield from running_families(numbers, lease_s=self._lease_s)
            yield from closed_families(numbers)
            yield from worker_families(numbers)
            yield from sweeper_families(numbers)


def queue_families(numbers: QueueNumbers) -> Iterator[Family]:
    """Tell what waits."""
    depth = GaugeMetricFamily(
        "dmsae_queued_cycles",
        "Cycles that wait to be claimed; those of held jobs are not counted.",
        labels=("resource_class", "priority"),
    )
    counts: dict[tuple[str, ...], float] = {(name, rank): 0 for name in CLASSES for rank in RANKS}
    oldest: dict[str, float] = dict.fromkeys(CLASSES, 0.0)
    for found in numbers.waiting:
        counts[found.resource_class, RANKS[found.priority_rank]] = found.n
        oldest[found.resource_class] = max(oldest.get(found.resource_class, 0.0), found.oldest_wait_s)
    _fill(depth, counts)
    yield depth
    wait = GaugeMetricFamily(
        "dmsae_oldest_wait_seconds",
        "How long the oldest of them has waited: since it was queued, its last attempt or its backoff ended.",
        labels=("resource_class",),
    )
    _fill(wait, {(name,): seconds for name, seconds in oldest.items()})
    yield wait
    paused = "Whether nothing is claimed because somebody paused the queue."
    yield GaugeMetricFamily("dmsae_queue_paused", paused, value=numbers.is_paused)


def running_families(numbers: QueueNumbers, *, lease_s: float) -> Iterator[Family]:
    """Tell what runs."""
    by_phase: dict[tuple[str, ...], float] = defaultdict(float)
    device_s: dict[tuple[str, ...], float] = defaultdict(float)
    ages: dict[tuple[str, ...], float] = {(name,): 0.0 for name in CLASSES}
    speeds: dict[tuple[str, ...], float] = {(name,): 0.0 for name in CLASSES}
    for found in numbers.running:
        by_phase[found.resource_class, found.phase] += found.n
        device_s[found.owner, found.resource_class] += found.device_s
        here = (found.resource_class,)
        ages[here] = max(ages.get(here, 0.0), found.overdue_s + lease_s)
        speeds[here] = speeds.get(here, 0.0) + (found.tokens_per_s or 0.0)
    for name, told, labels, values in (
        ("attempts_open", "Attempts that run.", ("resource_class", "phase"), by_phase),
        ("device_seconds_open", "Device time of attempts that run.", ("owner", "resource_class"), device_s),
        (
            "lease_age_seconds",
            "Since the last renewal of the attempt that was renewed least lately.",
            ("resource_class",),
            ages,
        ),
        ("tokens_per_second", "Tokens that running cycles take in.", ("resource_class",), speeds),
    ):
        family = GaugeMetricFamily(f"dmsae_{name}", told, labels=labels)
        _fill(family, values)
        yield family


def closed_families(numbers: QueueNumbers) -> Iterator[Family]:
    """Tell what was ever claimed, how it ended, and what it took."""
    claims: dict[tuple[str, ...], float] = {(name,): 0.0 for name in CLASSES}
    ended: dict[tuple[str, ...], float] = {(name, *end): 0.0 for name in CLASSES for end in _known_ends()}
    device_s: dict[tuple[str, ...], float] = defaultdict(float)
    for found in numbers.closed:
        claims[(found.resource_class,)] = claims.get((found.resource_class,), 0.0) + found.n
        code = found.code if found.code in FAILURES or not found.code else OTHER
        end = (found.resource_class, found.outcome, code)
        ended[end] = ended.get(end, 0.0) + found.n
        device_s[found.owner, found.resource_class] += found.device_s
    for running in numbers.running:
        claims[(running.resource_class,)] = claims.get((running.resource_class,), 0.0) + running.n
        device_s[running.owner, running.resource_class] += 0.0
    for name, told, labels, values in (
        ("claims", "Attempts that were ever opened.", ("resource_class",), claims),
        (
            "attempts",
            "Attempts that ended, by outcome and by the code of their error.",
            ("resource_class", "outcome", "code"),
            ended,
        ),
        ("device_seconds", "Device time of attempts that ended.", ("owner", "resource_class"), device_s),
    ):
        family = CounterMetricFamily(f"dmsae_{name}", told, labels=labels)
        _fill(family, values)
        yield family


def worker_families(numbers: QueueNumbers) -> Iterator[Family]:
    """Tell who serves devices."""
    states = ("idle", "busy", "draining", "gone")
    counts: dict[tuple[str, ...], float] = {(name, state): 0 for name in CLASSES for state in states}
    ages: dict[tuple[str, ...], float] = {}
    for found in numbers.workers:
        counts[found.resource_class, found.state] = found.n
        here = (found.resource_class,)
        ages[here] = max(ages.get(here, 0.0), found.unseen_s)
    workers = GaugeMetricFamily(
        "dmsae_workers",
        "Workers that have not stopped; gone: not seen for a minute.",
        labels=("resource_class", "state"),
    )
    _fill(workers, counts)
    yield workers
    unseen = GaugeMetricFamily(
        "dmsae_worker_unseen_seconds",
        "Since the one of them that was seen least lately was seen.",
        labels=("resource_class",),
    )
    _fill(unseen, ages)
    yield unseen


def sweeper_families(numbers: QueueNumbers) -> Iterator[Family]:
    """Tell what was put right, and when last."""
    done = {found.action: found for found in numbers.done}
    actions = CounterMetricFamily(
        "dmsae_sweeper_actions", "What the sweeper and its cleaner did.", labels=("action",)
    )
    for action in ACTIONS:
        if action not in SENDERS.values():
            actions.add_metric((action,), done[action].n if action in done else 0)
    yield actions
    ages = GaugeMetricFamily(
        "dmsae_sweeper_age_seconds",
        "Since the sweeper, or its cleaner, last got to the end; missing until it has once.",
        labels=("duty",),
    )
    for duty, action in DUTIES.items():
        if action in done:
            ages.add_metric((duty,), max(0.0, done[action].age_s))
    yield ages
    failed = CounterMetricFamily(
        "dmsae_wake_ups_failed",
        "Wake-ups that the broker did not take from workers and sweepers.",
        labels=("sender",),
    )
    for sender, action in SENDERS.items():
        failed.add_metric((sender,), done[action].n if action in done else 0)
    yield failed


def _known_ends() -> Iterator[tuple[str, str]]:
    """Name every pair of outcome and code that an attempt may end with."""
    for outcome in OUTCOMES:
        if outcome not in ("failed", "crashed"):
            yield outcome, ""
    for code, is_retryable in FAILURES.items():
        yield "failed", code
        if is_retryable or code == "out_of_memory":
            yield "crashed", code


def _fill(family: Family, values: Mapping[tuple[str, ...], float]) -> None:
    for labels, value in values.items():
        family.add_metric(labels, value)
