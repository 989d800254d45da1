"""Every example of the OpenAPI document is executed: requests are sent, answers held against their schema."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from sqlalchemy import select

from api import examples
from dmsae.service.database import Database
from dmsae.service.settings import Settings
from dmsae.service.tables import Cycle
from tests import hostile
from tests.conftest import RunningServices
from tests.finished import finish_cycles
from tests.serving import fresh_database, served

Document = dict[str, Any]
PUBLIC_ADDRESS = "192.0.32.8"
"""Instead of a name, which no test may have to look up."""

Site = tuple[httpx.Client, Document, dict[str, str]]


@pytest.fixture(scope="module")
def site(services: RunningServices) -> Iterator[Site]:
    """An open API, its document, and ids of a finished distillation, its core, a training and a group."""
    fields = {name.removeprefix("DMSAE_").lower(): value for name, value in services.env.items()}
    with fresh_database(services) as database_url, ExitStack() as closing:
        database = Database(database_url, wake_up=str)
        closing.callback(database.dispose)
        settings = Settings(**fields | {"database_url": database_url, "webhooks_key": "a key of this lab"})
        api = closing.enter_context(served(settings))
        done = api.post("/distillations", json={"preset": "demo"}).json()["id"]
        finish_cycles(database)
        around = {"core": {"kind": "selected", "cycle": {"job_id": done}}}
        with database.session_scope() as session:
            core_id = session.scalars(select(Cycle.output_core_id).where(Cycle.index == 1)).one()
        ids = {
            "done": done,
            "training": api.post("/trainings", json=around).json()["id"],
            "core_id": core_id,
            "group_id": api.post("/distillations", json={"preset": "demo", "chains": 2}).json()["group_id"],
            "name": "local",
        }
        yield api, api.get("/openapi.json").json(), ids


def requests_of(document: Document) -> Iterator[tuple[str, str, Any]]:
    for path, methods in document["paths"].items():
        for method, call in methods.items():
            body = call.get("requestBody", {}).get("content", {}).get("application/json", {})
            shown = body.get("examples") or body.get("schema", {}).get("examples") or []
            values = [each["value"] for each in shown.values()] if isinstance(shown, dict) else shown
            yield from ((method.upper(), path, value) for value in values)


def answers_of(document: Document) -> Iterator[tuple[str, Document, Any]]:
    for call in hostile.calls_of(document):
        found = document["paths"][call.path][call.method.lower()]
        for status, answer in found["responses"].items():
            content = answer.get("content", {}).get("application/json", {})
            schema = content.get("schema", {})
            inner = schema
            if "$ref" in schema:
                inner = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
            shown = [each["value"] for each in content.get("examples", {}).values()]
            for value in shown or inner.get("examples", []):
                yield f"{call.name} {status}", schema, value


def test_each_example_of_a_request_is_done(site: Site) -> None:
    api, document, ids = site
    n_sent = 0
    for method, path, example in requests_of(document):
        if path == "/keys":
            continue  # the open service makes none: see test_api_keys.py
        is_clone = path == "/trainings" and "clone" in example
        told = json.dumps(example).replace(examples.JOB_ID, ids["training" if is_clone else "done"])
        body = json.loads(told.replace("example.org", PUBLIC_ADDRESS))
        job_id = api.post("/distillations", json={"preset": "demo"}).json()["id"]
        answer = api.request(method, path.format(job_id=job_id, **ids), json=body)
        assert answer.status_code < 300, (method, path, answer.text)
        n_sent += 1
    assert n_sent >= 10


def test_each_example_of_an_answer_keeps_to_its_schema(
    site: Site,
) -> None:
    _, document, _ = site
    n_checked = 0
    for where, schema, example in answers_of(document):
        validator = Draft202012Validator({**schema, "components": document["components"]})
        problems = [problem.message for problem in validator.iter_errors(example)]
        assert not problems, (where, problems[:3])
        n_checked += 1
    assert n_checked > 20
