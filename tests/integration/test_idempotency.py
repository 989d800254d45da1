"""A POST with a key is done once, however often and however many at once send it."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from functools import partial
from threading import Barrier
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from api.examples import JOB_ID
from dmsae.service import keys
from dmsae.service.database import Database
from dmsae.service.idempotency_tables import IdempotencyKey
from dmsae.service.objects import ObjectStore
from dmsae.service.settings import Settings
from dmsae.service.table_base import Table
from dmsae.service.tables import Job
from tests import hostile
from tests.conftest import RunningServices
from tests.inhabited import PUBLIC_ADDRESS, inhabited
from tests.serving import served
from worker.cleaner import Cleaner

DEMO = {"preset": "demo"}
KEY = {"Idempotency-Key": "mine-1"}
N_AT_ONCE = 20


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    with served(settings) as client:
        yield client


def count(database: Database, table: Any) -> int:
    with database.session_scope() as session:
        return session.scalars(select(func.count()).select_from(table)).one()


def test_twenty_at_once_make_one_job(api: httpx.Client, database: Database) -> None:
    barrier = Barrier(N_AT_ONCE)

    def post() -> httpx.Response:
        barrier.wait(20)
        return api.post("/distillations", json=DEMO, headers=KEY)

    with ThreadPoolExecutor(N_AT_ONCE) as pool:
        answers = [future.result() for future in [pool.submit(post) for _ in range(N_AT_ONCE)]]
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len({answer.headers["Location"] for answer in answers}) == 1
    assert [answer.headers.get("Idempotency-Replayed") for answer in answers].count("true") == N_AT_ONCE - 1
    assert count(database, Job) == 1


MAKES = {
    "/distillations": "jobs",
    "/trainings": "jobs",
    "/probes": "jobs",
    "/uploads": "uploads",
    "/keys": "api_keys",
    "/webhooks": "webhooks",
}
"""Calls -> the table of what each makes one of; other POSTs change what is there."""


def test_every_post_is_done_once_though_twenty_send_it_at_once(services: RunningServices) -> None:
    with inhabited(services) as lab, ThreadPoolExecutor(N_AT_ONCE) as pool:
        told = lab.api.get("/openapi.json").text.replace(JOB_ID, lab.ids["job_id"][0])
        calls = hostile.calls_of(json.loads(told.replace("example.org", PUBLIC_ADDRESS)))
        _, _, waiting, _, failed, _ = lab.ids["job_id"]
        ids = {"group_id": lab.ids["group_id"][0], "core_id": lab.ids["core_id"][1]}
        posts = [call for call in calls if call.method == "POST"]
        assert {call.path for call in posts} > MAKES.keys()
        for call in posts:
            table = count_of(MAKES.get(call.path, "jobs"))
            job_id = failed if call.path.endswith("/retry") else waiting
            path = call.path.format(job_id=job_id, **ids)
            before = lab.database.run(table)
            send = partial(lab.api.post, path, json=call.body, headers={"Idempotency-Key": call.path})
            answers = [each.result() for each in [pool.submit(send) for _ in range(N_AT_ONCE)]]
            assert {answer.is_success for answer in answers} == {True}, (path, answers[0].text)
            assert len({(answer.status_code, answer.json().get("id")) for answer in answers}) == 1, path
            replayed = [answer.headers.get("Idempotency-Replayed") for answer in answers]
            assert replayed.count("true") == N_AT_ONCE - 1, path
            assert lab.database.run(table) - before == (call.path in MAKES), path


def count_of(table: str) -> Callable[[Session], int]:
    query = select(func.count()).select_from(Table.metadata.tables[table])
    return lambda session: session.scalars(query).one()


def test_the_same_body_written_otherwise_is_the_same_and_another_one_is_refused(
    api: httpx.Client, database: Database
) -> None:
    body = {**DEMO, "name": "one", "training": {"lr": 1.0, "n_tokens": 4096}}
    first = api.post("/distillations", json=body, headers=KEY)
    again = '{"training": {"n_tokens": 4096, "lr": 1}, \n "name": "one", "preset": "demo"}'
    headers = {**KEY, "Content-Type": "application/json"}
    replayed = api.post("/distillations", content=again, headers=headers)
    assert (first.status_code, replayed.status_code) == (202, 202)
    assert "Idempotency-Replayed" not in first.headers
    assert replayed.headers["Idempotency-Replayed"] == "true"
    assert replayed.headers["Location"] == first.headers["Location"]
    assert replayed.json() == first.json()
    for path, other in (("/distillations", {**body, "seed": 2}), ("/distillations?reuse=true", body)):
        refused = api.post(path, json=other, headers=KEY)
        problem = refused.json()
        assert (refused.status_code, problem["code"]) == (409, "idempotency_key_reused")
        assert "mine-1" in problem["detail"]
    assert count(database, Job) == 1


def test_a_refused_post_stores_nothing_under_its_key(api: httpx.Client, database: Database) -> None:
    assert api.post("/distillations", json={**DEMO, "sae": {"k": 9999}}, headers=KEY).status_code == 422
    assert api.post("/jobs/job_none/cancel", headers=KEY).status_code == 404
    assert api.post("/distillations?dry_run=true", json=DEMO, headers=KEY).status_code == 400
    assert count(database, IdempotencyKey) == 0
    assert api.post("/distillations", json=DEMO, headers=KEY).status_code == 202
    dry_run = api.post("/distillations?dry_run=true", json=DEMO, headers=KEY)
    assert (dry_run.status_code, dry_run.json()["param"]) == (400, "Idempotency-Key")
    for bad in ("", "a b", "x" * 256):
        answer = api.post("/distillations", json=DEMO, headers={"Idempotency-Key": bad})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), bad


def test_a_key_means_one_call_of_one_owner(api: httpx.Client, database: Database) -> None:
    owners = [database.run(lambda session, name=name: keys.create_key(session, name)[1]) for name in "ab"]
    headers = [{**KEY, "Authorization": f"Bearer {key}"} for key in owners]
    ids = [api.post("/distillations", json=DEMO, headers=mine).json()["id"] for mine in headers]
    assert len(set(ids)) == 2
    cancelled = api.post(f"/jobs/{ids[0]}/cancel", headers=headers[0])
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert "Idempotency-Replayed" not in cancelled.headers
    upload = {"filename": "a.txt", "size_bytes": 10}
    uploads = [api.post("/uploads", json=upload, headers=headers[0]) for _ in range(2)]
    assert [answer.status_code for answer in uploads] == [201, 201]
    assert uploads[0].json() == uploads[1].json()
    assert uploads[1].headers["Idempotency-Replayed"] == "true"


def test_a_replay_is_answered_although_its_request_would_be_refused_by_now(
    api: httpx.Client, database: Database
) -> None:
    first = api.post("/distillations", json=DEMO, headers=KEY)
    with database.session_scope() as session:
        session.execute(text("UPDATE owners SET max_queued = 0"))
    assert api.post("/distillations", json=DEMO).status_code == 429
    assert api.post("/distillations", json=DEMO, headers=KEY).json() == first.json()


def age_keys(database: Database) -> None:
    with database.session_scope() as session:
        long_ago = func.now() - timedelta(hours=24, minutes=1)
        session.execute(update(IdempotencyKey).values(created_at=long_ago))


def test_a_key_is_forgotten_after_a_day(api: httpx.Client, database: Database, settings: Settings) -> None:
    first = api.post("/distillations", json=DEMO, headers=KEY).json()["id"]
    age_keys(database)
    taken_again = api.post("/distillations", json={**DEMO, "seed": 3}, headers=KEY)
    assert taken_again.status_code == 202
    assert taken_again.json()["id"] != first
    with closing(ObjectStore(settings)) as store:
        cleaner = Cleaner(settings, database, store)
        for n_left in (1, 0):
            cleaner.do_part()
            assert count(database, IdempotencyKey) == n_left
            age_keys(database)
        cleaner.resign()
    assert count(database, Job) == 2


def test_a_secret_that_is_shown_once_is_not_shown_again_nor_stored(
    api: httpx.Client, database: Database
) -> None:
    admin = database.run(lambda session: keys.create_key(session, "ada", role="admin")[1])
    headers = {**KEY, "Authorization": f"Bearer {admin}"}
    first, again = (api.post("/keys", json={"name": "mine"}, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json() == {**first.json(), "key": None}
    with database.session_scope() as session:
        stored = session.scalars(select(IdempotencyKey.answer)).all()
    assert first.json()["key"] not in str(stored)
