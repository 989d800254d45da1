"""What Prometheus reads is what happened: counted against the database, over HTTP, in its own parser."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import httpx
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr, ValidationError
from sqlalchemy import delete, func, select, text, update

from dmsae.errors import Unavailable
from dmsae.service import keys
from dmsae.service.cancelling import cancel_job
from dmsae.service.claims import Claim, claim_cycle
from dmsae.service.database import Database
from dmsae.service.fresh_numbers import LIFE_S
from dmsae.service.leases import Report, renew
from dmsae.service.queue import WakeUps, make_celery
from dmsae.service.queue_control import pause_queue
from dmsae.service.queue_tables import UsageSlice
from dmsae.service.recording import RetryPolicy, record_cancelled, record_crash, record_failure
from dmsae.service.settings import Settings
from dmsae.service.tables import Attempt, Cycle, Owner, Worker
from dmsae.service.tallies import count_action
from tests.finished import finish_cycles
from tests.planting import plant_job, plant_worker
from tests.serving import served
from tests.worker_bench import bench_of, wait_for
from worker.idle import IdleTimer
from worker.sweeper import Sweeper

POLICY = RetryPolicy(max_attempts=3, backoff_s=0.0)
Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(api: httpx.Client, **headers: str) -> Samples:
    answer = api.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation, family.name
        for sample in family.samples:
            assert math.isfinite(sample.value), sample
            where = (sample.name, tuple(sorted(sample.labels.items())))
            assert where not in found, where
            found[where] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def total(samples: Samples, name: str, **labels: str) -> float:
    return sum(
        number for (found, at), number in samples.items() if found == name and set(labels.items()) <= set(at)
    )


def of_the_service(samples: Samples) -> dict[Any, float]:
    """What only grows, and is of no process."""
    own = ("dmsae_api_", "process_")
    return {at: n for at, n in samples.items() if at[0].endswith("_total") and not at[0].startswith(own)}


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    with served(settings) as client:
        yield client


@pytest.fixture
def worker_id(database: Database) -> str:
    return database.run(lambda session: plant_worker(session, "cpu"))


def claim(database: Database, worker_id: str) -> Claim:
    found = database.run_alone(
        lambda session: claim_cycle(
            session, worker_id=worker_id, resource_class="cpu", lease_s=2.0, celery_task_id="task"
        )
    )
    assert found is not None
    return found


def plant(database: Database, owner: str, **fields: Any) -> str:
    def use_case(session: Any) -> str:
        return plant_job(session, "cpu", owner_id=keys.ensure_owner(session, owner).id, n_cycles=1, **fields)

    return database.run(use_case)


def live_through(database: Database, settings: Settings, worker_id: str) -> None:
    """One job ends in each way; two wait, one of them after it was tried; one runs."""
    database.run(lambda session: plant_job(session, "cpu", owner_id=keys.ensure_owner(session, "ada").id))
    finish_cycles(database, worker_id=worker_id)
    plant(database, "ada")
    held = claim(database, worker_id)
    database.run(lambda s: record_failure(s, held, code="core_empty", message="No core."))
    plant(database, "bob")
    held = claim(database, worker_id)
    database.run(lambda s: record_crash(s, held, code="store_unavailable", message="Away.", policy=POLICY))
    second = claim(database, worker_id)
    database.run(lambda session: cancel_job(session, second.job_id))
    database.run(lambda s: record_cancelled(s, second, confirmed_by="supervisor"))
    expire_one(database, settings, worker_id)
    plant(database, "bob", priority="high")
    running = claim(database, worker_id)
    report = Report(phase="training", progress={"step": 3, "tokens_per_s": 1234.5})
    database.run(lambda session: renew(session, running, lease_s=settings.lease_s, report=report))
    plant(database, "ada")


def expire_one(database: Database, settings: Settings, worker_id: str) -> None:
    """Let a lease run out, and the sweeper close its attempt; its cycle waits on."""
    plant(database, "bob", priority="low")
    lost = claim(database, worker_id)
    over = func.clock_timestamp() - timedelta(seconds=10)
    change = update(Attempt).where(Attempt.id == lost.attempt_id).values(lease_expires_at=over)
    database.run(lambda session: session.execute(change))
    wake_ups = WakeUps(make_celery(SecretStr("redis://127.0.0.1:1/0")))
    sweeper = Sweeper(settings.model_copy(update={"lease_s": 0.001}), database, wake_ups)
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        assert sweeper.sweep()
        assert sweeper.sweep()
    sweeper.resign()
    (line,) = (line for line in lines if line["event"] == "attempt_expired")
    assert (line["job"], line["cycle"], line["attempt"]) == (lost.job_id, 0, 1)


def test_each_number_is_what_was_counted(
    api: httpx.Client, database: Database, settings: Settings, worker_id: str
) -> None:
    live_through(database, settings, worker_id)
    seen = scrape(api)
    with database.session_scope() as session:
        n_opened = session.scalars(select(func.count()).select_from(Attempt)).one()
        closed = session.execute(
            select(Attempt.outcome, Attempt.error["code"].astext, func.count())
            .where(Attempt.outcome.is_not(None))
            .group_by(text("1, 2"))
        ).all()
        closed = [(outcome, code or "", n) for outcome, code, n in closed]
        took = func.date_part("epoch", Attempt.closed_at - Attempt.opened_at)
        device_s = session.execute(
            select(Owner.name, func.sum(took)).select_from(Attempt).join(Cycle).join(Owner)
            .where(Attempt.outcome.is_not(None)).group_by(Owner.name)
        ).all()  # fmt: skip
    assert value(seen, "dmsae_claims_total", resource_class="cpu") == n_opened == 8
    assert {("succeeded", ""), ("failed", "core_empty"), ("crashed", "store_unavailable"),
            ("cancelled", ""), ("crashed", "lease_expired")} == {row[:2] for row in closed}  # fmt: skip
    for outcome, code, n in closed:
        told = value(seen, "dmsae_attempts_total", resource_class="cpu", outcome=outcome, code=code)
        assert told == n, (outcome, code)
    assert total(seen, "dmsae_attempts_total") == sum(row[2] for row in closed) == 7
    for owner, seconds in device_s:
        told = value(seen, "dmsae_device_seconds_total", owner=owner, resource_class="cpu")
        assert told == pytest.approx(seconds)
    waiting = {rank: value(seen, "dmsae_queued_cycles", resource_class="cpu", priority=rank)
               for rank in ("high", "normal", "low")}  # fmt: skip
    assert waiting == {"high": 0, "normal": 1, "low": 1}
    assert value(seen, "dmsae_attempts_open", resource_class="cpu", phase="training") == 1
    assert value(seen, "dmsae_tokens_per_second", resource_class="cpu") == 1234.5
    assert 0 <= value(seen, "dmsae_lease_age_seconds", resource_class="cpu") < 5
    assert value(seen, "dmsae_workers", resource_class="cpu", state="busy") == 1
    assert total(seen, "dmsae_workers") == 1
    assert value(seen, "dmsae_sweeper_actions_total", action="attempt_expired") == 1
    assert value(seen, "dmsae_sweeper_actions_total", action="swept") == 2
    assert 0 <= value(seen, "dmsae_sweeper_age_seconds", duty="sweep") < 30
    assert value(seen, "dmsae_database_up") == 1
    assert value(seen, "dmsae_queue_paused") == 0


def test_what_only_grows_does_so_though_rows_go_and_processes_end_and_all_processes_tell_the_same(
    database: Database, settings: Settings, worker_id: str
) -> None:
    with served(settings) as api:
        live_through(database, settings, worker_id)
        first = of_the_service(scrape(api))
        with served(settings) as another:
            assert of_the_service(scrape(another)) == first
    with database.session_scope() as session:
        session.execute(delete(UsageSlice))
        closed = select(Attempt.id).where(Attempt.outcome.is_not(None), Attempt.outcome != "succeeded")
        session.execute(delete(Attempt).where(Attempt.id.in_(closed)))
    with served(settings) as api:
        assert of_the_service(scrape(api)) == first
        held = claim(database, worker_id)
        database.run(lambda s: record_failure(s, held, code="not_a_code", message="?"))
        time.sleep(LIFE_S)
        then = of_the_service(scrape(api))
    assert all(then.get(at, -1.0) >= n for at, n in first.items())
    grown = {(name, dict(at).get("code", "")): n - first.get((name, at), 0.0)
             for (name, at), n in then.items() if n > first.get((name, at), 0.0)}  # fmt: skip
    assert grown.pop(("dmsae_device_seconds_total", "")) > 0
    assert grown == {("dmsae_claims_total", ""): 1, ("dmsae_attempts_total", "other"): 1}


def test_a_cycle_waits_since_its_last_attempt_or_its_backoff_ended(
    api: httpx.Client, database: Database, worker_id: str
) -> None:
    job_id = plant(database, "ada")
    hours = update(Cycle).where(Cycle.job_id == job_id)
    ago = func.clock_timestamp() - timedelta(hours=2)
    database.run(lambda session: session.execute(hours.values(queued_at=ago)))
    assert 7200 <= value(scrape(api), "dmsae_oldest_wait_seconds", resource_class="cpu") < 7300
    held = claim(database, worker_id)
    database.run(lambda s: record_crash(s, held, code="crashed", message="?", policy=POLICY))
    database.run(lambda session: count_action(session, "swept"))
    time.sleep(LIFE_S)
    seen = scrape(api)
    assert value(seen, "dmsae_queued_cycles", resource_class="cpu", priority="normal") == 1
    assert 0 <= value(seen, "dmsae_oldest_wait_seconds", resource_class="cpu") < 60
    database.run(lambda session: session.execute(hours.values(not_before=func.now() + timedelta(hours=1))))
    time.sleep(LIFE_S)
    assert value(scrape(api), "dmsae_oldest_wait_seconds", resource_class="cpu") == 0


def test_paused_queues_and_workers_that_are_gone_are_told(
    api: httpx.Client, database: Database, worker_id: str
) -> None:
    plant(database, "ada")
    claim(database, worker_id)
    ago = func.clock_timestamp() - timedelta(minutes=5)
    with database.session_scope() as session:
        plant_worker(session, "gpu")
        session.execute(update(Worker).where(Worker.id == worker_id).values(last_seen_at=ago))
        session.execute(update(Attempt).values(lease_expires_at=ago))
        pause_queue(session)
    seen = scrape(api)
    assert value(seen, "dmsae_queue_paused") == 1
    assert value(seen, "dmsae_workers", resource_class="gpu", state="idle") == 1
    assert value(seen, "dmsae_workers", resource_class="cpu", state="gone") == 1
    assert 300 <= value(seen, "dmsae_worker_unseen_seconds", resource_class="cpu") < 400
    assert 300 <= value(seen, "dmsae_lease_age_seconds", resource_class="cpu") < 400


def test_requests_are_counted_under_their_template_and_no_label_holds_what_a_client_sends(
    api: httpx.Client, database: Database
) -> None:
    job_id = plant(database, "ada", name="a secret name", notes="and notes")
    for path in (f"/jobs/{job_id}", f"/jobs/{job_id}", "/jobs/job_absent", "/nowhere/at/all", "/jobs?x=1"):
        api.get(path)
    api.request("BREW", "/jobs")
    api.post("/distillations", content=b"{", headers={"Content-Type": "application/json"})
    text = api.get("/metrics").text
    seen = scrape(api)
    count = "dmsae_api_requests_total"
    assert value(seen, count, method="GET", route="/jobs/{job_id}", status="200") == 2
    assert value(seen, count, method="GET", route="/jobs/{job_id}", status="404") == 1
    assert value(seen, count, method="GET", route="unmatched", status="404") == 1
    assert value(seen, count, method="GET", route="/jobs", status="422") == 1
    assert total(seen, count, method="other") == 1
    assert total(seen, count, method="POST", route="unmatched", status="400") == 1
    timed = "dmsae_api_request_seconds_count"
    assert value(seen, timed, method="GET", route="/jobs/{job_id}") == 3
    for told in (job_id, "job_absent", "nowhere", "BREW", "secret name", "and notes"):
        assert told not in text
    assert value(seen, "dmsae_api_requests_in_progress") == 1


def test_a_request_that_crashes_is_counted_and_one_that_asked_to_wait_is_not_timed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr("dmsae.service.queue_view.view_queue", crash)
    with served(settings) as api:
        assert api.get("/queue?limit=5", headers={"Connection": "close"}).status_code == 500
        api.get("/jobs/job_absent?wait=1")
        seen = scrape(api)
    assert value(seen, "dmsae_api_requests_total", method="GET", route="/queue", status="500") == 1
    assert total(seen, "dmsae_api_requests_total", route="/jobs/{job_id}") == 1
    assert total(seen, "dmsae_api_request_seconds_count", route="/jobs/{job_id}") == 0


def test_while_postgres_is_away_or_hangs_the_process_still_tells_what_it_knows(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmsae.service.fresh_numbers.PATIENCE_S", 0.5)
    nowhere = SecretStr("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with served(settings.model_copy(update={"database_url": nowhere})) as api:
        seen = scrape(api)
    assert value(seen, "dmsae_database_up") == 0
    assert value(seen, "dmsae_api_database_connections_max") == 10
    assert not [name for name, _ in seen if name.startswith("dmsae_claims")]
    with served(settings) as api:
        assert value(scrape(api), "dmsae_database_up") == 1
        time.sleep(LIFE_S)
        with database.session_scope() as session:
            session.execute(text("LOCK TABLE cycles IN ACCESS EXCLUSIVE MODE"))
            for _ in range(3):
                began = time.monotonic()
                assert value(scrape(api), "dmsae_database_up") == 0
                assert time.monotonic() - began < 3
        wait_for(lambda: value(scrape(api), "dmsae_database_up") == 1)


def test_a_pool_that_is_used_up_is_seen(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Database] = []

    def remember(*given: Any, **more: Any) -> Database:
        made.append(Database(*given, **more))
        return made[-1]

    monkeypatch.setattr("api.main.Database", remember)
    with served(settings) as api, ExitStack() as closing:
        for _ in range(10):
            closing.enter_context(made[0].engine.connect())
        seen = scrape(api)
    assert value(seen, "dmsae_api_database_connections", state="in_use") == 10
    assert value(seen, "dmsae_database_up") == 1


def test_outside_the_trusted_networks_a_key_is_needed_and_one_proven_lately_does_without_postgres(
    settings: Settings, database: Database
) -> None:
    with database.session_scope() as session:
        key = keys.create_key(session, "prometheus", role="reader")[1]
        revoked, lost = keys.create_key(session, "ada")
        keys.revoke_key(session, revoked.id)
    bearer = {"Authorization": f"Bearer {key}"}
    with served(settings.model_copy(update={"metrics_networks": ["10.0.0.0/8"]})) as api:
        assert api.get("/metrics").status_code == 401
        assert api.get("/metrics", headers={"Authorization": f"Bearer {lost}"}).status_code == 401
        assert api.get("/metrics", headers=bearer).status_code == 200
        assert key not in api.get("/metrics", headers=bearer).text
    with served(settings) as api:
        assert api.get("/metrics").status_code == 200
        for stranger in ({"Host": "evil.example"}, {"X-Forwarded-For": "8.8.8.8"}, {"Via": "1.1 proxy"}):
            assert api.get("/metrics", headers=stranger).status_code == 401, stranger
            assert api.get("/metrics", headers={**stranger, **bearer}).status_code == 200, stranger


def test_a_key_proven_lately_reads_on_while_postgres_is_away_and_another_does_not(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = database.run(lambda session: keys.create_key(session, "prometheus", role="reader")[1])
    bearer = {"Authorization": f"Bearer {key}"}

    def away(*_: Any, **__: Any) -> None:
        raise Unavailable

    with served(settings.model_copy(update={"metrics_networks": []})) as api:
        assert api.get("/metrics", headers=bearer).status_code == 200
        monkeypatch.setattr("api.security.keys.identify", away)
        assert api.get("/metrics", headers=bearer).status_code == 200
        assert api.get("/metrics", headers={"Authorization": "Bearer other"}).status_code == 503
        assert api.get("/metrics").status_code == 503


@pytest.mark.parametrize("network", ["10.0.0.1/8", "everywhere", "10.0.0.0/99"])
def test_a_network_that_is_none_stops_the_start(settings: Settings, network: str) -> None:
    with pytest.raises(ValidationError, match="metrics_networks"):
        Settings.model_validate({**settings.model_dump(), "metrics_networks": network})


def test_each_line_of_a_request_says_who_asked_for_which_job_under_which_id(
    settings: Settings, database: Database
) -> None:
    job_id = plant(database, "ada")
    owner_id = database.run(lambda session: keys.ensure_owner(session, keys.OPEN_OWNER).id)
    processors = [structlog.contextvars.merge_contextvars]
    no_broker = settings.model_copy(update={"broker_url": SecretStr("redis://127.0.0.1:1/0")})
    with (
        served(no_broker) as api,
        structlog.testing.capture_logs(processors=processors) as lines,
    ):
        api.post(f"/jobs/{job_id}/cancel", headers={"X-Request-ID": "mine"})
        api.post("/distillations", json={"preset": "demo"}, headers={"X-Request-ID": "next"})
        api.get("/healthz", headers={"X-Request-ID": "last"})
        wait_for(lambda: sum(line["event"] == "wake_up_failed" for line in lines) == 1)
    mine, submitted, last = (
        [line for line in lines if line["request_id"] == request_id]
        for request_id in ("mine", "next", "last")
    )
    assert len(lines) == len(mine) + len(submitted) + len(last)
    assert "wake_up_failed" in {line["event"] for line in submitted}
    assert all((line["owner_id"], line["job"]) == (owner_id, job_id) for line in mine)
    assert all(line["owner_id"] == owner_id and "job" not in line for line in submitted)
    [answered] = [line for line in submitted if line["event"] == "request_answered"]
    assert answered["location"].startswith("/jobs/job_")
    assert "owner_id" not in last[0]


def test_wake_ups_that_no_broker_took_from_a_worker_are_told_once(
    api: httpx.Client, settings: Settings, database: Database
) -> None:
    no_broker = settings.model_copy(update={"broker_url": SecretStr("redis://127.0.0.1:1/0")})
    bench = bench_of(no_broker, database)
    timer = IdleTimer(next(bench).runtime, look=lambda: None)
    timer.tick()
    timer.tick()
    assert value(scrape(api), "dmsae_wake_ups_failed_total", sender="worker") == 2
    assert value(scrape(api), "dmsae_wake_ups_failed_total", sender="sweeper") == 0
    next(bench, None)
