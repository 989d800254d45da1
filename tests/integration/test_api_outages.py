"""What a client sees while Postgres, Redis or S3 is away."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from sqlalchemy import func, select

from dmsae.service.database import Database
from dmsae.service.settings import Settings
from dmsae.service.tables import Cycle, Event, Job
from tests.conftest import RunningServices
from tests.serving import served

DEMO = {"preset": "demo"}


@contextmanager
def suspended(service: object) -> Iterator[None]:
    service.suspend()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        service.resume()  # type: ignore[attr-defined]


def timed(call: object, *args: object, **kwargs: object) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    answer = call(*args, **kwargs)  # type: ignore[operator]
    return answer, time.monotonic() - began


def test_all_parts_are_told_one_by_one(settings: Settings) -> None:
    with served(settings) as api:
        answer = api.get("/readyz")
    assert answer.status_code == 200
    assert {name: part["status"] for name, part in answer.json()["parts"].items()} == {
        "postgres": "ok",
        "migrations": "ok",
        "redis": "ok",
        "s3": "ok",
    }


def test_without_postgres_every_call_says_so_at_once_and_the_process_lives(settings: Settings) -> None:
    away = settings.model_copy(
        update={
            "database_url": type(settings.database_url)(
                "postgresql+psycopg://dmsae:secretpw@127.0.0.1:1/dmsae"
            )
        }
    )
    with served(away) as api:
        for answer, seconds in (timed(api.post, "/distillations", json=DEMO), timed(api.get, "/jobs")):
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert "Retry-After" in answer.headers
            assert "secretpw" not in answer.text
            assert seconds < 6
        assert api.get("/healthz").status_code == 200
        ready = api.get("/readyz")
    assert ready.status_code == 503
    parts = {name: part["status"] for name, part in ready.json()["parts"].items()}
    assert parts == {"postgres": "failed", "migrations": "failed", "redis": "ok", "s3": "ok"}


def test_a_frozen_postgres_gives_503_within_seconds_and_leaves_nothing_half_stored(
    settings: Settings, services: RunningServices, database: Database
) -> None:
    with served(settings) as api:
        with suspended(services.postgres):
            answer, seconds = timed(api.post, "/distillations", json=DEMO)
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert seconds < 7
            ready, seconds = timed(api.get, "/readyz")
            assert (ready.status_code, ready.json()["parts"]["postgres"]["status"]) == (503, "failed")
            assert seconds < 6
            assert api.get("/healthz").status_code == 200
        with database.session_scope() as session:
            for table in (Job, Cycle, Event):
                assert session.scalar(select(func.count()).select_from(table)) == 0
        assert api.post("/distillations", json=DEMO).status_code == 202


def test_a_frozen_broker_delays_an_accepted_job_by_seconds_only(
    settings: Settings, services: RunningServices
) -> None:
    with served(settings) as api:
        assert api.post("/distillations", json=DEMO).status_code == 202
        with suspended(services.valkey):
            answer, seconds = timed(api.post, "/distillations", json=DEMO)
            assert answer.status_code == 202
            assert seconds < 5
            ready = api.get("/readyz").json()
            assert ready["parts"]["redis"]["status"] == "failed"
            assert ready["parts"]["postgres"]["status"] == "ok"
        assert len(api.get("/jobs").json()["items"]) == 2


def test_a_frozen_object_store_is_told_and_jobs_are_still_taken(
    settings: Settings, services: RunningServices
) -> None:
    with served(settings) as api, suspended(services.s3):
        ready, seconds = timed(api.get, "/readyz")
        assert (ready.status_code, ready.json()["parts"]["s3"]["status"]) == (503, "failed")
        assert seconds < 6
        assert api.post("/distillations", json=DEMO).status_code == 202
