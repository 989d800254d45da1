"""Hostile values in every field, query, path and header of every call: refused plainly, and nothing stored.

`DMSAE_FUZZ=1` (`make fuzz`) sends all of them; else each place gets one, another than the place before.
"""

import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from sqlalchemy import text

import api as our_package
from dmsae.service import keys
from dmsae.service.database import Database
from dmsae.service.settings import Settings
from dmsae.service.table_base import Table
from tests import hostile
from tests.conftest import RunningServices
from tests.finished import finish_cycles
from tests.serving import fresh_database, served

IS_WHOLE = "DMSAE_FUZZ" in os.environ
SOME = 1
SOME_CURSORS = 24
JSON = {"Content-Type": "application/json"}
LARGEST_PROBLEM = 64 * 1024
pytestmark = pytest.mark.timeout(7200 if IS_WHOLE else 280)

LEAKS = re.compile(
    r"SELECT |INSERT INTO|UPDATE \w+ SET|sqlalchemy|psycopg|Traceback|site-packages|\.py\b|/usr/lib|key_hash",
)


class Ids(dict[str, str]):
    """Ids of things that are there; of any other kind there is none."""

    def __missing__(self, name: str) -> str:
        return f"{name}-none"


class Site(NamedTuple):
    api: httpx.Client
    database: Database
    calls: list[hostile.Call]
    ids: dict[str, str]
    secrets: list[str]

    def path(self, call: hostile.Call, **other: str) -> str:
        return call.path.format_map(Ids({**self.ids, **other}))

    def n_rows(self) -> dict[str, Any]:
        told = {name: f"count(*) FROM {name}" for name in Table.metadata.tables}
        told["versions"] = "sum(version) FROM jobs"
        query = ", ".join(f"(SELECT {what}) AS {name}" for name, what in told.items())
        with self.database.session_scope() as session:
            return dict(session.execute(text(f"SELECT {query}")).one()._mapping)

    def check(self, answer: httpx.Response, sent: object) -> bool:
        """Hold an answer against what every answer must keep to; say whether it is a refusal."""
        told = answer.text
        assert answer.status_code < 500, (sent, told[:500])
        assert not LEAKS.search(told), (sent, told[:500])
        assert not any(secret in told for secret in self.secrets), sent
        assert "X-Injected" not in answer.headers
        if answer.status_code < 400:
            return False
        assert answer.headers["content-type"] == "application/problem+json", sent
        assert len(answer.content) < LARGEST_PROBLEM, (sent, len(answer.content))
        problem = json.loads(answer.content, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
        assert problem["status"] == answer.status_code
        assert {"type", "title", "code", "detail", "request_id"} <= problem.keys(), sent
        return True


@pytest.fixture(scope="module")
def site(services: RunningServices) -> Iterator[Site]:
    fields = {name.removeprefix("DMSAE_").lower(): value for name, value in services.env.items()}
    with fresh_database(services) as database_url, ExitStack() as closing:
        settings = Settings(**{**fields, "database_url": database_url, "rate_per_s": 0})
        database = Database(database_url, wake_up=str)
        closing.callback(database.dispose)
        key = database.run(lambda session: keys.create_key(session, "ada", role="admin")[1])
        api = closing.enter_context(served(settings))
        api.headers["Authorization"] = f"Bearer {key}"
        ids = {
            "job_id": api.post("/distillations", json={"preset": "demo"}).json()["id"],
            "name": "ada",
        }
        ids["latent_id"] = f"{ids['job_id']}.0.3"
        finish_cycles(database)
        ids["group_id"] = api.post("/distillations", json={"preset": "demo", "chains": 2}).json()["group_id"]
        secret = settings.s3_secret_key.get_secret_value()
        password = database.engine.url.password or ""
        root = str(Path(our_package.__file__).parents[1])
        calls = hostile.calls_of(api.get("/openapi.json").json())
        yield Site(api, database, calls, ids, [key, secret, password, root])


def some_of(values: Sequence[Any], places: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Pair each place with the next value, round and round; with all of them for the whole corpus."""
    turning = itertools.cycle(values)
    for place in places:
        for _ in range(len(values) if IS_WHOLE else SOME):
            yield place, next(turning)


def test_no_value_in_any_field_of_any_body_gets_more_than_a_refusal(site: Site) -> None:
    with_body = [call for call in site.calls if call.body is not None]
    places = [(call, place) for call in with_body for place in [("unknown",), *call.fields]]
    n_refused, stored = 0, site.n_rows()
    for (call, place), value in some_of(hostile.JSON_VALUES, places):
        sent = hostile.with_value(call.body or {}, place, value)
        answer = site.api.request(call.method, site.path(call), content=sent, headers=JSON)
        now = site.n_rows()
        if site.check(answer, (call.name, place, value[:80])):
            n_refused += 1
            assert now == stored, (call.name, place, value[:80])
        stored = now
    assert n_refused > SOME * len(places) / 2


def test_no_value_in_any_query_gets_more_than_a_refusal(site: Site) -> None:
    reads = [call for call in site.calls if call.method == "GET"]
    places = [(call, name) for call in reads for name in [*call.names("query"), "unknown", "%00"]]
    for (call, name), value in some_of(hostile.TEXTS, places):
        answer = site.api.get(f"{site.path(call)}?{name}={value}")
        is_refused = site.check(answer, (call.name, name, value[:80]))
        assert is_refused or name in call.names("query"), (call.name, name)


def test_a_parameter_that_is_given_twice_is_refused(site: Site) -> None:
    answer = site.api.get("/jobs?limit=1&limit=2")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["param"] == "limit"


def test_no_value_in_any_path_gets_more_than_a_refusal(site: Site) -> None:
    places = [(call, name) for call in site.calls for name in call.names("path")]
    for (call, name), value in some_of(hostile.TEXTS, places):
        answer = site.api.request(call.method, site.path(call, **{name: value or "%00"}))
        assert site.check(answer, (call.name, name, value[:80])), (call.name, name, value[:80])


def test_no_forged_cursor_gets_more_than_a_refusal(site: Site) -> None:
    paged = [call for call in site.calls if "cursor" in call.names("query")]
    assert len(paged) >= 5
    for call, cursor in itertools.product(paged, list(hostile.cursors())[:: 1 if IS_WHOLE else SOME_CURSORS]):
        answer = site.api.get(site.path(call), params={"cursor": cursor})
        site.check(answer, (call.name, cursor))
        assert answer.status_code in (200, 400, 404), (call.name, cursor)


def test_no_header_gets_more_than_a_refusal(site: Site) -> None:
    for call, (name, value) in some_of(hostile.HEADERS, site.calls):
        body = None if call.body is None else b"{}"
        path = site.path(call) if call.method == "GET" else site.path(call, job_id="job_none")
        answer = site.api.request(call.method, path, content=body, headers={name: value})
        site.check(answer, (call.name, name, value[:80]))
