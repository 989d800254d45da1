"""Hostile values in every field, query, path and header of every call: refused plainly, and nothing stored.

`DMSAE_FUZZ=1` (`make fuzz`) sends all of them; else each place gets one, another than the place before.
"""

import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from sqlalchemy import text

import api as our_package
from api.examples import JOB_ID
from api.limits import LARGEST_BODY_BYTES
from dmsae.service.database import Database
from dmsae.service.table_base import Table
from tests import hostile
from tests.conftest import RunningServices
from tests.inhabited import PUBLIC_ADDRESS, inhabited

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
        core = {"name": "first"} if "{lab}" in call.path else {}
        return call.path.format_map(Ids({**self.ids, **core, **other}))

    def n_rows(self) -> dict[str, Any]:
        told = {name: f"count(*) FROM {name}" for name in Table.metadata.tables}
        told["versions"] = "sum(version) FROM jobs"
        query = ", ".join(f"(SELECT {what}) AS {name}" for name, what in told.items())
        with self.database.session_scope() as session:
            return dict(session.execute(text(f"SELECT {query}")).one()._mapping)

    def check(self, answer: httpx.Response, sent: object) -> bool:
        return check(answer, sent, self.secrets)


def check(answer: httpx.Response, sent: object, secrets: Sequence[str]) -> bool:
    """Hold an answer against what every answer must keep to; say whether it is a refusal."""
    told = answer.text
    assert answer.status_code < 500, (sent, told[:500])
    assert not LEAKS.search(told), (sent, told[:500])
    assert not any(secret in told for secret in secrets), sent
    assert "X-Injected" not in answer.headers
    kind = answer.headers.get("content-type", "")
    if "json" in kind and answer.status_code not in (204, 304):
        read = json.loads(answer.content, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    if answer.status_code < 400:
        return False
    assert kind == "application/problem+json", sent
    assert len(answer.content) < LARGEST_PROBLEM, (sent, len(answer.content))
    assert read["status"] == answer.status_code
    assert {"type", "title", "code", "detail", "request_id"} <= read.keys(), sent
    return True


@pytest.fixture(scope="module")
def site(services: RunningServices) -> Iterator[Site]:
    with inhabited(services) as lab:
        ids = {name: known[0] for name, known in lab.ids.items()} | {"figure": "origins", "form": "csv"}
        secret = lab.settings.s3_secret_key.get_secret_value()
        password = lab.database.engine.url.password or ""
        folders = [str(Path(our_package.__file__).parents[1]), str(services.parts.postgres.folder.parent)]
        told = lab.api.get("/openapi.json").text.replace(JOB_ID, ids["job_id"])
        calls = hostile.calls_of(json.loads(told.replace("example.org", PUBLIC_ADDRESS)))
        yield Site(lab.api, lab.database, calls, ids, [lab.key, secret, password, *folders])


PROBLEM = {"type": "urn:a", "title": "a", "status": 422, "code": "a", "detail": "a", "request_id": "a"}
PLAIN = {"content-type": "application/problem+json"}


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500, json=PROBLEM, headers=PLAIN),
        httpx.Response(422, json={**PROBLEM, "detail": "a" * LARGEST_PROBLEM}, headers=PLAIN),
        httpx.Response(422, content=json.dumps({**PROBLEM, "detail": float("nan")}), headers=PLAIN),
        httpx.Response(200, content='{"share": NaN}', headers=JSON),
        httpx.Response(422, content="<p>no</p>", headers=PLAIN),
        httpx.Response(422, json=PROBLEM),
        httpx.Response(422, json={**PROBLEM, "status": 400}, headers=PLAIN),
        httpx.Response(422, json={**PROBLEM, "detail": "a key of this lab"}, headers=PLAIN),
        httpx.Response(422, json={**PROBLEM, "detail": "no /srv/lab/x"}, headers=PLAIN),
        httpx.Response(422, json={**PROBLEM, "detail": "SELECT id FROM jobs"}, headers=PLAIN),
        httpx.Response(422, json=PROBLEM, headers={**PLAIN, "X-Injected": "1"}),
    ],
)
def test_an_answer_that_stumbles_lies_or_leaks_is_seen(answer: httpx.Response) -> None:
    secrets = ["a key of this lab", "/srv/lab"]
    assert check(httpx.Response(422, json=PROBLEM, headers=PLAIN), "", secrets)
    with pytest.raises((AssertionError, json.JSONDecodeError, pytest.fail.Exception)):
        check(answer, "", secrets)


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


def test_no_body_that_is_none_gets_more_than_a_refusal(site: Site) -> None:
    with_body = [call for call in site.calls if call.body is not None]
    stored = site.n_rows()
    for call, content in some_of(hostile.BODIES, with_body):
        answer = site.api.request(call.method, site.path(call), content=content, headers=JSON)
        assert site.check(answer, (call.name, content[:80])), (call.name, content[:80])
    for call in with_body:
        large = b" " * (LARGEST_BODY_BYTES + 1)
        answer = site.api.request(call.method, site.path(call), content=large, headers=JSON)
        assert site.check(answer, call.name)
        assert answer.status_code == 413, call.name
    assert site.n_rows() == stored


def test_no_value_in_any_query_gets_more_than_a_refusal(site: Site) -> None:
    places = [(call, name) for call in site.calls for name in [*call.names("query"), "unknown", "%00"]]
    for (call, name), value in some_of(hostile.TEXTS, places):
        path = site.path(call, job_id="job_none") if call.method == "DELETE" else site.path(call)
        answer = site.api.request(call.method, f"{path}?{name}={value}", json=call.body)
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
