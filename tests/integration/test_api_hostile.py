"""Whatever a client sends, the answer is a problem document below 500."""

import base64
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies

from api.limits import LARGEST_BODY_BYTES
from dmsae.service.settings import Settings
from tests.conftest import RunningServices
from tests.serving import fresh_database, served

JSON = {"Content-Type": "application/json"}
NUMBERS: list[Any] = [0, -1, 2**63, 10**400, 1.5, float("nan"), float("inf"), 1e308, True, None]
TEXTS: list[Any] = ["", "\0", "\ud800", "a" * 5000, "../../x", "'; DROP TABLE jobs; --", "%s%n{0}"]
PARTS: list[Any] = [[], {}, [[]] * 200, {"source": "local", "path": "/\0"}, {"": {"": ""}}]
FIELDS = ["name", "tags", "notes", "priority", "preset", "n_cycles", "seed", "chains", "device", "n_threads"]
SECTIONS = ["model", "data", "activations", "sae", "training", "attribution", "selection", "evaluation"]
INNER = [
    "source",
    "name",
    "path",
    "text",
    "split",
    "layer",
    "k",
    "n_latents",
    "block_widths",
    "lr",
    "\ud800",
    "\0",
]
ROUTES = ["", "/cycles", "/core", "/lineage", "/origins"]

hostile = strategies.sampled_from([*NUMBERS, *TEXTS, *PARTS])
bodies = strategies.dictionaries(
    strategies.sampled_from([*FIELDS, *SECTIONS, "x", "\ud800"]),
    hostile | strategies.dictionaries(strategies.sampled_from(INNER), hostile, max_size=4),
    max_size=6,
)


@pytest.fixture(scope="module")
def api(services: RunningServices) -> Iterator[httpx.Client]:
    """One API for all tests of this module: whatever one of them sends must leave it working."""
    fields = {name.removeprefix("DMSAE_").lower(): value for name, value in services.env.items()}
    with (
        fresh_database(services) as database_url,
        served(Settings(**{**fields, "database_url": database_url})) as client,
    ):
        yield client


def check_refused(answer: httpx.Response) -> None:
    """A problem document below 500, strict JSON, not much longer than what it tells."""
    assert 400 <= answer.status_code < 500, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    problem = json.loads(answer.content, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert problem["status"] == answer.status_code
    assert {"type", "title", "code", "detail", "request_id"} <= problem.keys()
    assert len(answer.content) < 100_000


def test_no_body_makes_the_service_stumble(api: httpx.Client) -> None:
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(body=bodies, is_preset=strategies.booleans(), is_patch=strategies.booleans())
    def try_one(body: dict[str, Any], is_preset: bool, is_patch: bool) -> None:
        content = json.dumps({"preset": "demo", **body} if is_preset else body)
        if is_patch:
            answer = api.patch("/jobs/job_none", content=content, headers=JSON)
        else:
            answer = api.post("/distillations?dry_run=true", content=content, headers=JSON)
        if answer.status_code != 200:
            check_refused(answer)

    try_one()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"nul",
        b"[]",
        b'"text"',
        b"NaN",
        b'{"preset": "demo", "training": {"lr": NaN}}',
        b'{"preset": "demo", "training": {"lr": Infinity}}',
        b'{"preset": "demo", "training": {"lr": 1e999}}',
        b'{"preset": "demo", "name": NaN}',
        b'{"preset": "demo", "seed": ' + b"9" * 10_000 + b"}",
        b"\xff\xfe{",
        b'{"preset": "\xff"}',
        b"[" * 500_000,
        b'{"preset":' * 90_000,
    ],
)
def test_a_malformed_body_is_refused(api: httpx.Client, content: bytes) -> None:
    check_refused(api.post("/distillations", content=content, headers=JSON))


def test_a_body_above_the_limit_is_refused_before_it_is_parsed(api: httpx.Client) -> None:
    too_large = b" " * (LARGEST_BODY_BYTES + 1)
    for content in (too_large, iter([too_large[:1000], too_large]), too_large * 8, iter([too_large] * 8)):
        answer = api.post("/distillations", content=content, headers=JSON)
        assert answer.status_code == 413
        check_refused(answer)
    fitting = b'{"preset": "demo"}'.ljust(LARGEST_BODY_BYTES)
    assert api.post("/distillations?dry_run=1", content=fitting, headers=JSON).status_code == 200


def test_a_client_that_sends_on_after_its_body_was_refused_can_still_read_why(api: httpx.Client) -> None:
    size_bytes = 4 * LARGEST_BODY_BYTES
    head = f"POST /distillations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size_bytes}\r\n\r\n"
    with socket.create_connection((api.base_url.host, api.base_url.port), timeout=10) as client:
        client.sendall(head.encode() + b" " * 1000)
        time.sleep(0.3)
        client.sendall(b" " * 1000)
        time.sleep(0.3)
        client.sendall(b" " * (size_bytes - 2000))
        with client.makefile("rb") as answer:
            assert answer.readline() == b"HTTP/1.1 413 Request Entity Too Large\r\n"
            assert answer.read().endswith(b"}")


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/jobs/",
        "/jobs/%00",
        "/jobs/a%00b/events",
        "/jobs/" + "a" * 5000,
        "/jobs/job_none/logs",
        "/jobs/..%2f..%2fetc",
        "/jobs/%F0%9F%98%80",
        "/jobs/%ff",
        "/jobs?limit=0",
        "/jobs?limit=99999999999999999999",
        "/jobs?limit=ten",
        "/jobs?limits=1",
        "/jobs?text=%00",
        "/jobs?state=done",
        "/jobs?cursor=%00",
        "/jobs?cursor=WyIwMDAxLTAxLTAxIiwgIngiXQ%00",
        "/jobs/job_none/events?after=-1",
        "/jobs/job_none/events?after=9223372036854775808",
        "/distillations/job_none/core?min_selected=0",
        "/distillations/job_none/core?cycle_index=99999999999",
        *[f"/distillations/job_none{route}" for route in ROUTES],
    ],
)
def test_a_strange_address_is_refused(api: httpx.Client, path: str) -> None:
    check_refused(api.get(path))


@pytest.mark.parametrize("method", ["PUT", "DELETE", "TRACE", "FOO"])
def test_a_method_that_is_not_there_is_refused_with_those_that_are(api: httpx.Client, method: str) -> None:
    answer = api.request(method, "/jobs")
    check_refused(answer)
    assert answer.status_code == 405
    assert "GET" in answer.headers["Allow"]


@pytest.mark.parametrize(
    "key", ['["0001-01-01", "x"]', '["9999-12-31T23:59:59+23:59", "x"]', '["1", "x"]', "[1]"]
)
def test_a_forged_cursor_is_answered(api: httpx.Client, key: str) -> None:
    cursor = base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")
    assert api.get("/jobs", params={"cursor": cursor}).status_code in (200, 400)


def test_broken_requests_leave_the_service_up(api: httpx.Client) -> None:
    bad_length = b"POST /distillations HTTP/1.1\r\nContent-Length: x\r\n\r\n"
    for raw in (b"\0\0\0", b"GET / HTTP/9\r\n\r\n", bad_length):
        with socket.create_connection(("127.0.0.1", api.base_url.port or 0)) as connection:
            connection.sendall(raw)
            connection.settimeout(5)
            connection.recv(1000)
    with socket.create_connection(("127.0.0.1", api.base_url.port or 0)) as connection:
        connection.sendall(b"POST /distillations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    assert api.get("/healthz").status_code == 200
