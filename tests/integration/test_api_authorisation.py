"""Who may do what: every call of the API by every kind of caller, against a real database.

`MATRIX` must name each route of the application: one without a row fails a test here.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import text
from sqlalchemy.orm import Session

from api.main import create_app
from dmsae.service import keys
from dmsae.service.database import Database
from dmsae.service.ids import new_id
from dmsae.service.settings import Settings
from dmsae.service.table_base import Table
from dmsae.service.webhook_tables import Webhook
from tests.conftest import RunningServices
from tests.finished import finish_cycles
from tests.serving import fresh_database, served

Allowed = Literal["everyone", "key", "submitter", "owner", "admin"]
DEMO = {"preset": "demo"}
YESTERDAY = datetime.now(UTC) - timedelta(days=1)
CALLERS = ("none", "expired", "revoked", "reader", "own", "other", "admin")
"""`reader` and `own` have keys of the owner whose things are asked for, `other` one of another submitter."""
MAY: dict[Allowed, tuple[str, ...]] = {
    "everyone": CALLERS,
    "key": ("reader", "own", "other", "admin"),
    "submitter": ("own", "other", "admin"),
    "owner": ("own", "admin"),
    "admin": ("admin",),
}


class Row(NamedTuple):
    """A call: who may make it, with what, and what those are answered who may."""

    allowed: Allowed
    status: int
    body: Any = None
    hidden: bool = False
    """Whether others are told that there is no such thing: 404 instead of 403."""
    ended: bool = False
    """Whether its job is one that was cancelled."""


READ = Row("key", 200)
OWN = Row("owner", 200)
CORE_READS = ("", "/cycles", "/core", "/lineage", "/origins")
MATRIX: dict[str, Row] = {
    "GET /healthz": Row("everyone", 200),
    "GET /readyz": Row("everyone", 200),
    "GET /metrics": Row("everyone", 200),
    "POST /distillations": Row("submitter", 202, DEMO),
    "POST /trainings": Row("submitter", 202, {"core": {"kind": "selected", "cycle": {"job_id": "DONE"}}}),
    "POST /uploads": Row("submitter", 201, {"filename": "a.txt", "size_bytes": 10}),
    **{f"GET /distillations/{{job_id}}{name}": READ for name in CORE_READS},
    **{f"GET /trainings/{{job_id}}{name}": Row("key", 404) for name in CORE_READS},
    "POST /probes": Row("submitter", 202, {"kind": "logit_lens", "core": {"job": "DONE"}}),
    "GET /probes/{job_id}": Row("key", 404),
    "GET /groups/{group_id}": READ,
    "GET /latents": READ,
    "GET /latents/{latent_id}": READ,
    "GET /latents/{latent_id}/descendants": READ,
    "GET /latents/{latent_id}/snippets": Row("key", 404),
    "GET /cores": READ,
    "GET /cores/{core_id}": READ,
    "GET /cores/{lab}/{name}": Row("key", 404),
    "POST /cores/{core_id}/publish": Row("owner", 200, {"name": "lab/first"}),
    "POST /groups/{group_id}/cancel": OWN,
    "GET /jobs": READ,
    "GET /jobs/{job_id}": READ,
    "PATCH /jobs/{job_id}": Row("owner", 200, {"name": "changed"}),
    "DELETE /jobs/{job_id}": Row("owner", 204, ended=True),
    "POST /jobs/{job_id}/cancel": OWN,
    "POST /jobs/{job_id}/retry": Row("owner", 409),
    "GET /jobs/{job_id}/events": READ,
    "GET /jobs/{job_id}/metrics": READ,
    "GET /jobs/{job_id}/logs": READ,
    "GET /jobs/{job_id}/artifacts": READ,
    "GET /jobs/{job_id}/figures/{figure}.{form}": READ,
    "GET /figures/compare": Row("key", 422),
    "GET /figures/compare.{form}": Row("key", 422),
    "GET /queue": READ,
    "GET /keys": READ,
    "POST /keys": Row("submitter", 201, {"name": "another"}),
    "DELETE /keys/{key_id}": Row("owner", 204, hidden=True),
    "GET /webhooks": READ,
    "POST /webhooks": Row("submitter", 409, {"url": "https://8.8.8.8/in"}),
    "GET /webhooks/{webhook_id}": Row("key", 404),
    "DELETE /webhooks/{webhook_id}": Row("owner", 204, hidden=True),
    "GET /admin/queue": Row("admin", 200),
    "PATCH /admin/queue": Row("admin", 200, {"is_paused": True}),
    "PATCH /admin/jobs/{job_id}": Row("admin", 200, {"held": True}),
    "GET /admin/owners": Row("admin", 200),
    "PATCH /admin/owners/{name}": Row("admin", 200, {"max_running": 3}),
}


@dataclass
class Site:
    """An API with keys of every kind, and things of ada's to ask for."""

    api: httpx.Client
    database: Database
    headers: dict[str, dict[str, str]]
    done: str
    group: str

    def ask(self, who: str, call: str, *, body: Any = None, **ids: str) -> httpx.Response:
        method, path = call.split()
        named = {"job_id": self.done, "group_id": self.group, "name": "ada", **self.found(), **ids}
        extra = {} if body is None else {"json": body}
        return self.api.request(method, path.format(**named), headers=self.headers[who], **extra)

    def found(self) -> dict[str, str]:
        """A latent and a core of ada's finished distillation."""
        select_core = text("SELECT output_core_id FROM cycles WHERE job_id = :job_id AND index = 1")
        with self.database.session_scope() as session:
            core_id = session.execute(select_core, {"job_id": self.done}).scalar_one()
        ids = {"latent_id": f"{self.done}.0.3", "core_id": core_id, "lab": "lab", "webhook_id": "hook_none"}
        return {**ids, "figure": "origins", "form": "csv"}

    def fresh_job(self, *, ended: bool) -> str:
        job_id: str = self.ask("own", "POST /distillations", body=DEMO).json()["id"]
        if ended:
            assert self.ask("own", "POST /jobs/{job_id}/cancel", job_id=job_id).status_code == 200
        return job_id

    def fresh_key(self) -> str:
        return self.database.run(lambda session: keys.create_key(session, "ada")[0].id)

    def fresh_webhook(self) -> str:
        def plant(session: Session) -> str:
            webhook = Webhook(id=new_id("hook"), url="https://8.8.8.8/in", states=["failed"])
            webhook.owner_id = keys.ensure_owner(session, "ada").id
            session.add(webhook)
            return webhook.id

        return self.database.run(plant)

    def contents(self) -> dict[str, Any]:
        """What is stored, but for when keys were used."""
        told = {
            **{name: f"count(*) FROM {name}" for name in Table.metadata.tables},
            "versions": "sum(version) FROM jobs",
            "n_revoked": "count(revoked_at) FROM api_keys",
            "limits": "sum(weight + coalesce(max_running, 0)) FROM owners",
        }
        query = ", ".join(f"(SELECT {what}) AS {name}" for name, what in told.items())
        with self.database.session_scope() as session:
            return dict(session.execute(text(f"SELECT {query}")).one()._mapping)


@pytest.fixture(scope="module")
def site(services: RunningServices) -> Iterator[Site]:
    fields = {name.removeprefix("DMSAE_").lower(): value for name, value in services.env.items()}
    with fresh_database(services) as database_url, ExitStack() as closing:
        database = Database(database_url, wake_up=str)
        closing.callback(database.dispose)
        settings = Settings(**{**fields, "database_url": database_url})
        with served(settings) as api:
            headers = make_headers(database)
            own = headers["own"]
            done = api.post("/distillations", json={**DEMO, "n_cycles": 3}, headers=own).json()["id"]
            finish_cycles(database)
            group = api.post("/distillations", json={**DEMO, "chains": 2}, headers=own).json()["group_id"]
            yield Site(api, database, headers, done, group)


def make_headers(database: Database) -> dict[str, dict[str, str]]:
    with database.session_scope() as session:
        made = {
            "expired": keys.create_key(session, "ada", expires_at=YESTERDAY),
            "revoked": keys.create_key(session, "ada"),
            "reader": keys.create_key(session, "ada", role="reader"),
            "own": keys.create_key(session, "ada"),
            "other": keys.create_key(session, "bob"),
            "admin": keys.create_key(session, "root", role="admin"),
        }
        keys.revoke_key(session, made["revoked"][0].id)
    return {"none": {}} | {who: {"Authorization": f"Bearer {key[1]}"} for who, key in made.items()}


def calls_of(routes: list[Any]) -> Iterator[str]:
    """Every call below these routes, also those that the OpenAPI document leaves out."""
    for route in routes:
        if (router := getattr(route, "original_router", None)) is not None:
            yield from calls_of(router.routes)
        elif isinstance(route, APIRoute):
            yield from (f"{method} {route.path}" for method in route.methods)


def test_every_route_has_a_row(settings: Settings) -> None:
    app = create_app(settings)
    paths = app.openapi()["paths"]
    documented = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert documented | set(calls_of(app.routes)) == MATRIX.keys()
    assert documented <= set(calls_of(app.routes))


@pytest.mark.parametrize("call", MATRIX)
def test_each_caller_may_do_what_the_matrix_says_and_no_more(site: Site, call: str) -> None:
    row = MATRIX[call]
    body = None if row.body is None else json.loads(json.dumps(row.body).replace("DONE", site.done))
    for who in CALLERS:
        ids: dict[str, str] = {}
        if row.allowed in ("owner", "admin"):
            ids = {"job_id": site.fresh_job(ended=row.ended), "key_id": site.fresh_key()}
            ids["webhook_id"] = site.fresh_webhook()
        before = site.contents()
        answer = site.ask(who, call, body=body, **ids)
        if who in MAY[row.allowed]:
            assert answer.status_code == row.status, (who, answer.text)
            continue
        assert site.contents() == before, who
        assert answer.headers["content-type"] == "application/problem+json"
        refusal = (answer.status_code, answer.json()["code"])
        expected = {
            "none": (401, "unauthorized"),
            "expired": (401, "key_expired"),
            "revoked": (401, "key_revoked"),
        }
        hidden = (404, "not_found") if row.hidden and who == "other" else (403, "forbidden")
        assert refusal == expected.get(who, hidden), (who, answer.text)
