"""Webhooks over TLS as it is, and by two replicas of which one acts."""

import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr
from sqlalchemy import func, select

from dmsae.service import cancelling
from dmsae.service.database import Database
from dmsae.service.ids import new_id
from dmsae.service.settings import Settings
from dmsae.service.tables import Job
from dmsae.service.webhook_tables import Webhook, WebhookDelivery
from tests.planting import fresh_class, plant_job
from tests.receiver import receiving
from worker.webhooks import Messenger

N_JOBS = 8
"""That end while one replica acts, while there are two, and when the first has ended."""
LONG_S = 60


@pytest.fixture
def open_settings(settings: Settings) -> Settings:
    changes = {"webhooks_key": SecretStr("a key of this service"), "webhooks_allow_private": True}
    return settings.model_copy(update=changes)


def end_job(database: Database, url: str) -> None:
    """End a job of which a webhook is to be told."""
    job_id = database.run(lambda session: plant_job(session, fresh_class(), n_cycles=1))

    def hook(session) -> None:
        owner_id = session.get_one(Job, job_id).owner_id
        ends = ["succeeded", "failed", "cancelled"]
        session.add(Webhook(id=new_id("hook"), owner_id=owner_id, url=url, job_id=job_id, states=ends))

    database.run(hook)
    database.run(lambda session: cancelling.cancel_job(session, job_id))


def wait_until(is_so: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + LONG_S
    while not is_so():
        assert time.monotonic() < ends_at
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("certified", "is_trusted", "arrives"),
    [("localhost", True, True), ("elsewhere.example", True, False), ("localhost", False, False)],
)
def test_an_end_is_told_over_tls_only_to_whom_a_trusted_certificate_names(
    open_settings: Settings,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    certified: str,
    is_trusted: bool,
    arrives: bool,
) -> None:
    authority, server = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(certified).configure_cert(server)
    roots = authority if is_trusted else trustme.CA()
    roots.cert_pem.write_to_path(str(tmp_path / "roots.pem"))
    monkeypatch.setattr("certifi.where", lambda: str(tmp_path / "roots.pem"))
    with receiving(server) as receiver:
        end_job(database, receiver.url)
        messenger = Messenger(open_settings, database)
        messenger.do_part()
        messenger.resign()
    with database.session_scope() as session:
        delivery = session.scalars(select(WebhookDelivery)).one()
    if arrives:
        [(headers, _)] = receiver.told
        assert headers["host"] == receiver.url.split("/")[2]
        assert (delivery.state, delivery.last_status) == ("delivered", 204)
    else:
        assert receiver.told == []
        assert (delivery.state, delivery.last_status) == ("pending", None)
        assert delivery.last_error == "The connection failed: ConnectError."


def test_of_two_replicas_one_tells_each_end_once_and_the_other_goes_on_when_it_ends(
    open_settings: Settings, database: Database
) -> None:
    stops = [threading.Event(), threading.Event()]
    first, other = (
        threading.Thread(target=Messenger(open_settings, database).run, args=(stop,)) for stop in stops
    )
    with receiving() as receiver:

        def end_some() -> None:
            n_told = len(receiver.told)
            for _ in range(N_JOBS):
                end_job(database, receiver.url)
            wait_until(lambda: len(receiver.told) >= n_told + N_JOBS)

        first.start()
        end_some()
        other.start()
        end_some()
        stops[0].set()
        first.join(LONG_S)
        end_some()
        stops[1].set()
        other.join(LONG_S)
    told = [headers["webhook-id"] for headers, _ in receiver.told]
    delivered = select(func.count()).where(WebhookDelivery.state == "delivered", WebhookDelivery.n_tries == 1)
    assert (len(told), len(set(told))) == (3 * N_JOBS, 3 * N_JOBS)
    assert database.run(lambda session: session.scalar(delivered)) == 3 * N_JOBS
