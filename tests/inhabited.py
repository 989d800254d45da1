"""A lab in which something of each kind is there: for tests that ask every call for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import httpx
from sqlalchemy import select

from dmsae.service import keys
from dmsae.service.core_tables import Core
from dmsae.service.database import Database
from dmsae.service.recording import record_failure
from dmsae.service.settings import Settings
from tests.conftest import RunningServices
from tests.finished import claim_of, finish_cycles
from tests.planting import plant_worker
from tests.serving import fresh_database, served
from tests.training_rows import given_entry, record, training_lineage

DEMO = {"preset": "demo"}
METRICS = {"prefix_widths": [3, 6], "lr_kept": 0.9, "lr_kept_per_prefix": [0.5, 0.9]}

PUBLIC_ADDRESS = "192.0.32.8"
"""Where webhooks go: no test may look up a name."""


class Inhabited(NamedTuple):
    """An API with an administrator's key, its database, and what is there by the parameters that name it."""

    api: httpx.Client
    database: Database
    settings: Settings
    key: str
    ids: dict[str, list[str]]


@contextmanager
def inhabited(services: RunningServices) -> Iterator[Inhabited]:
    """Serve a lab with jobs of each kind and end, a published core, a group, a spare key and a webhook."""
    fields = {name.removeprefix("DMSAE_").lower(): value for name, value in services.env.items()}
    with fresh_database(services) as url:
        settings = Settings(
            **fields | {"database_url": url, "rate_per_s": 0, "webhooks_key": "a key of this lab"}
        )
        database = Database(url, wake_up=str)
        key = database.run(lambda session: keys.create_key(session, "root", role="admin")[1])
        with served(settings) as api:
            api.headers["Authorization"] = f"Bearer {key}"
            yield Inhabited(api, database, settings, key, _settle(api, database))
        database.dispose()


def _settle(api: httpx.Client, database: Database) -> dict[str, list[str]]:
    """Make one of each, and name them by the parameters that lead to them."""

    def made(path: str, body: dict[str, object], name: str = "id") -> str:
        answer = api.post(path, json=body)
        assert answer.is_success, answer.text
        return str(answer.json()[name])

    worker_id = database.run(lambda session: plant_worker(session, "cpu"))
    done = made("/distillations", DEMO)
    finish_cycles(database, worker_id=worker_id, **METRICS)
    around = {"core": {"kind": "selected", "cycle": {"job_id": done}}}
    trained = made("/trainings", around)
    claim = claim_of(database, worker_id)
    lineage = training_lineage(claim, [given_entry(0, f"{done}.0.3")], kept=[0], new=[7])
    record(database, claim, lineage, **METRICS)
    failed = made("/distillations", DEMO)
    broken = claim_of(database, worker_id)
    database.run(lambda session: record_failure(session, broken, code="out_of_memory", message="No room."))
    with database.session_scope() as session:
        core_ids = list(session.scalars(select(Core.id).where(Core.cycle_id.is_not(None)).order_by(Core.id)))
    made(f"/cores/{core_ids[0]}/publish", {"name": "lab/first"}, "core_id")
    probe = made("/probes", {"kind": "logit_lens", "core": {"job": done}})
    database.run(lambda session: keys.ensure_owner(session, "ada"))
    group = made("/distillations", {**DEMO, "chains": 2}, "group_id")
    return {
        "job_id": [done, trained, made("/trainings", around), probe, failed, "job_none"],
        "jobs": [done, f"{done},{trained}", group],
        "group_id": [group],
        "latent_id": [f"{done}.0.3", f"{done}.1.20"],
        "core_id": core_ids,
        "key_id": [made("/keys", {"name": "spare"})],
        "webhook_id": [made("/webhooks", {"url": f"https://{PUBLIC_ADDRESS}/in"})],
        "lab": ["lab"],
        "name": ["ada", "first", "first@1", "lab/first@1"],
    }
