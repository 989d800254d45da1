"""Webhooks tell each end of a job at least once, signed; and step metrics, which others watch by."""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import select, text, update

from dmsae.service import cancelling
from dmsae.service.database import Database
from dmsae.service.settings import Settings
from dmsae.service.tables import Cycle, MetricPoint
from dmsae.service.webhook_tables import WebhookDelivery
from tests.planting import fresh_class, plant_job
from tests.receiver import Receiver, receiving
from tests.serving import served
from worker.webhooks import Messenger


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


@pytest.fixture
def open_settings(settings: Settings) -> Settings:
    changes = {"webhooks_key": SecretStr("a key of this service"), "webhooks_allow_private": True}
    return settings.model_copy(update=changes)


@pytest.fixture
def api(open_settings: Settings) -> Iterator[httpx.Client]:
    with served(open_settings) as client:
        yield client


def end_job(database: Database) -> str:
    job_id = database.run(lambda session: plant_job(session, fresh_class(), name="secret name"))
    database.run(lambda session: cancelling.cancel_job(session, job_id))
    return job_id


def test_an_end_is_told_once_signed_and_its_outcome_is_shown(
    api: httpx.Client, open_settings: Settings, database: Database, receiver: Receiver
) -> None:
    going = database.run(lambda session: plant_job(session, fresh_class(), name="my own words"))
    made = api.post("/webhooks", json={"url": receiver.url, "job_id": going})
    assert made.status_code == 201, made.text
    webhook = made.json()
    end_job(database)
    for _ in range(2):
        database.run(lambda session: cancelling.cancel_job(session, going))
    messenger = Messenger(open_settings, database)
    for _ in range(3):
        messenger.do_part()
    messenger.resign()
    [(headers, body)] = receiver.told
    key = base64.b64decode(webhook["secret"].removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{signature}"
    told = json.loads(body)
    assert (told["type"], told["data"]["id"], told["data"]["state"]) == ("job.cancelled", going, "cancelled")
    assert b"my own words" not in body
    seen = api.get(f"/webhooks/{webhook['id']}").json()
    assert "secret" not in seen
    [delivery] = seen["deliveries"]
    assert (delivery["id"], delivery["state"]) == (headers["webhook-id"], "delivered")
    assert (delivery["n_tries"], delivery["last_status"]) == (1, 204)


def test_a_refused_delivery_is_tried_again_with_the_same_id_and_given_up_after_a_day(
    api: httpx.Client, open_settings: Settings, database: Database, receiver: Receiver
) -> None:
    job_id = database.run(lambda session: plant_job(session, fresh_class()))
    webhook_id = api.post("/webhooks", json={"url": receiver.url, "job_id": job_id}).json()["id"]
    database.run(lambda session: cancelling.cancel_job(session, job_id))
    messenger = Messenger(open_settings, database)
    receiver.status = 302
    messenger.do_part()
    messenger.do_part()
    assert len(receiver.told) == 1
    [waiting] = api.get(f"/webhooks/{webhook_id}").json()["deliveries"]
    assert (waiting["state"], waiting["last_status"], waiting["n_tries"]) == ("pending", 302, 1)
    due = update(WebhookDelivery).values(next_at=text("now()"))
    database.run(lambda session: session.execute(due))
    receiver.status = 500
    messenger.do_part()
    assert len({headers["webhook-id"] for headers, _ in receiver.told}) == 1
    assert len(receiver.told) == 2
    old = due.values(created_at=text("now() - interval '25 hours'"))
    database.run(lambda session: session.execute(old))
    messenger.do_part()
    messenger.resign()
    [ended] = api.get(f"/webhooks/{webhook_id}").json()["deliveries"]
    assert (ended["state"], ended["last_status"], ended["n_tries"]) == ("given_up", 500, 3)


def test_a_delivery_is_refused_where_the_address_turns_out_to_be_private(
    api: httpx.Client, open_settings: Settings, database: Database, receiver: Receiver
) -> None:
    job_id = database.run(lambda session: plant_job(session, fresh_class()))
    url = receiver.url.replace("http:", "https:").replace("127.0.0.1", "localhost")
    webhook_id = api.post("/webhooks", json={"url": url, "job_id": job_id}).json()["id"]
    database.run(lambda session: cancelling.cancel_job(session, job_id))
    strict = open_settings.model_copy(update={"webhooks_allow_private": False})
    messenger = Messenger(strict, database)
    messenger.do_part()
    messenger.resign()
    [delivery] = api.get(f"/webhooks/{webhook_id}").json()["deliveries"]
    assert delivery["state"] == "pending"
    assert "public address" in delivery["last_error"]
    assert receiver.told == []


def test_a_webhook_is_made_listed_and_deleted_and_wrong_ones_are_refused(
    api: httpx.Client, database: Database, receiver: Receiver
) -> None:
    made = api.post("/webhooks", json={"url": receiver.url, "states": ["failed", "failed"]})
    webhook_id = made.json()["id"]
    assert made.json()["states"] == ["failed"]
    assert [item["id"] for item in api.get("/webhooks").json()["items"]] == [webhook_id]
    ended = end_job(database)
    assert api.post("/webhooks", json={"url": receiver.url, "job_id": ended}).status_code == 409
    assert api.post("/webhooks", json={"url": receiver.url, "job_id": "job_none"}).status_code == 404
    for wrong in ({"states": []}, {"states": ["queued"]}, {"url": "ftp://x/"}, {"more": 1}):
        assert api.post("/webhooks", json={"url": receiver.url, **wrong}).status_code == 422
    assert api.delete(f"/webhooks/{webhook_id}").status_code == 204
    assert api.get(f"/webhooks/{webhook_id}").status_code == 404
    assert database.run(lambda session: list(session.scalars(select(WebhookDelivery)))) == []


def test_step_metrics_are_cut_to_as_many_points_as_wanted(api: httpx.Client, database: Database) -> None:
    def plant(session: Any) -> str:
        job_id = plant_job(session, fresh_class())
        cycle_id = session.scalars(select(Cycle.id).where(Cycle.job_id == job_id, Cycle.index == 0)).one()
        for step in range(1, 101):
            loss = None if step % 2 else float(step)
            session.add(MetricPoint(cycle_id=cycle_id, step=step, fence=1, n_tokens=step * 10, loss=loss))
        return job_id

    job_id = database.run(plant)
    path = f"/jobs/{job_id}/metrics"
    [whole] = api.get(path).json()["items"]
    assert (whole["n_recorded"], whole["columns"]["step"]) == (100, list(range(1, 101)))
    assert whole["columns"]["loss"][:2] == [None, 2.0]
    [cut] = api.get(f"{path}?points=4&column=loss").json()["items"]
    assert cut["columns"] == {
        "step": [25, 50, 75, 100],
        "n_tokens": [250, 500, 750, 1000],
        "loss": [13.0, 38.0, 63.0, 88.0],
    }
    table = api.get(f"{path}?points=1&column=loss&format=csv")
    assert table.headers["content-type"].startswith("text/csv")
    assert table.text == "cycle_index,step,n_tokens,loss\n0,100,1000,51.0\n"
    assert api.get(f"{path}?cycle_index=1").json() == {"items": []}
    for wrong in ("points=0", "points=5001", "column=id", "format=xml", "cycle_index=-1"):
        assert api.get(f"{path}?{wrong}").status_code == 422
    assert api.get("/jobs/job_none/metrics").status_code == 404
