"""Who may ask, from where, and what may be changed."""

from collections.abc import Iterator

import httpx
import pytest

from api.__main__ import refuse_open_network
from api.security import is_loopback
from dmsae.errors import Forbidden
from dmsae.service import keys
from dmsae.service.database import Database
from dmsae.service.settings import Settings
from tests.serving import served

DEMO = {"preset": "demo"}


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    with served(settings) as client:
        yield client


@pytest.fixture
def key_of(database: Database) -> dict[str, dict[str, str]]:
    """Headers with a key of two owners."""
    with database.session_scope() as session:
        made = {name: keys.create_key(session, name)[1] for name in ("ada", "bob")}
    return {name: {"Authorization": f"Bearer {plaintext}"} for name, plaintext in made.items()}


def test_while_there_is_no_key_only_allowed_host_names_are_answered(api: httpx.Client) -> None:
    port = api.base_url.port
    for host in ("127.0.0.1", f"localhost:{port}", "LOCALHOST", "[::1]:80"):
        assert api.get("/jobs", headers={"Host": host}).status_code == 200, host
    for host in (
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil:80",
        "",
        "[",
        "127.0.0.1@evil",
    ):
        assert api.get("/jobs", headers={"Host": host}).status_code in (400, 403), host


def test_while_there_is_no_key_other_sites_can_change_nothing(api: httpx.Client) -> None:
    job_id = api.post("/distillations", json=DEMO).json()["id"]
    body = b'{"preset": "demo"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert api.post("/distillations", content=body, headers={"Content-Type": kind}).status_code == 415
        assert api.post(f"/jobs/{job_id}/cancel", headers={"Content-Type": kind}).status_code == 415
    assert api.post("/distillations", content=body).status_code == 415
    for origin in ("https://evil.example", "null", "http://["):
        assert api.post(f"/jobs/{job_id}/cancel", headers={"Origin": origin}).status_code == 403
    assert api.get(f"/jobs/{job_id}").json()["state"] == "queued"
    assert api.post(f"/jobs/{job_id}/cancel", headers={"Origin": "http://localhost:1"}).status_code == 200


def test_once_there_is_a_key_one_is_required(api: httpx.Client, key_of: dict[str, dict[str, str]]) -> None:
    for given in (None, "Bearer wrong", "Basic YTpi", "x", "Bearer"):
        headers = {} if given is None else {"Authorization": given}
        answer = api.get("/jobs", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert answer.json()["code"] == "unauthorized"
        assert api.post("/distillations", json=DEMO, headers=headers).status_code == 401
    assert api.get("/jobs", headers=key_of["ada"]).status_code == 200
    assert api.get("/jobs", headers={**key_of["ada"], "Host": "dmsae.example"}).status_code == 200
    assert api.get("/healthz").status_code == 200


def test_only_its_owner_may_change_a_job_though_all_may_read_it(
    api: httpx.Client, key_of: dict[str, dict[str, str]]
) -> None:
    job = api.post("/distillations", json=DEMO, headers=key_of["ada"]).json()
    path = f"/jobs/{job['id']}"
    assert job["owner"] == "ada"
    assert api.get(path, headers=key_of["bob"]).status_code == 200
    assert api.patch(path, json={"name": "mine"}, headers=key_of["bob"]).status_code == 403
    assert api.post(f"{path}/cancel", headers=key_of["bob"]).status_code == 403
    assert api.get(path, headers=key_of["ada"]).json() == job
    assert api.post(f"{path}/cancel", headers=key_of["ada"]).status_code == 200


def test_a_key_can_be_demanded_on_loopback_too(settings: Settings) -> None:
    with served(settings.model_copy(update={"require_key": True})) as client:
        assert client.get("/jobs").status_code == 401


def test_listening_beyond_loopback_needs_a_key(settings: Settings, database: Database) -> None:
    everywhere = settings.model_copy(update={"host": "0.0.0.0"})  # noqa: S104
    refuse_open_network(settings)
    with pytest.raises(Forbidden, match="dmsae keys create"):
        refuse_open_network(everywhere)
    database.run(lambda session: keys.create_key(session, "ada"))
    refuse_open_network(everywhere)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "::ffff:127.0.0.1"])
def test_loopback_addresses_are_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", "", "localhost.evil"])  # noqa: S104
def test_everything_else_is_no_loopback(host: str) -> None:
    assert not is_loopback(host)
