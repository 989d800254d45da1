"""The client: versions, profiles, and stores that break off, as real ones seldom do on demand."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from dmsae.client import senders
from dmsae.client.answers import VersionMismatch
from dmsae.client.client import AsyncClient, Client
from dmsae.client.profiles import (
    Profile,
    change_profile,
    config_path,
    find_api,
    read_profiles,
    write_profiles,
)
from dmsae.client.pulling import BytesDiffer
from dmsae.errors import BadRequest, DmsaeError, NotFound, Unavailable
from dmsae.version import VERSION, VERSION_HEADER, is_understood

ROOT = Path(__file__).parents[2]
URL = "http://127.0.0.1:1"
CONTENT = bytes(range(256)) * 40
REAL = httpx.Client
Handler = Callable[[httpx.Request], httpx.Response]


class Broken(httpx.SyncByteStream):
    """A body that ends early, as a connection does."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Any:
        yield self._content
        raise httpx.ReadError("connection reset")


class Store:
    """A service of one job with one file, whose store breaks off as often as it is told."""

    def __init__(self, *, breaks: int = 0, has_ranges: bool = True, content: bytes = CONTENT) -> None:
        self.breaks, self.has_ranges, self.content = breaks, has_ranges, content
        self.name = "sae/sae_weights.safetensors"
        self.sha256 = hashlib.sha256(CONTENT).hexdigest()
        self.good_link, self.ranges = 0, []
        self.n_links = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.host == "store":
            return self._give(request)
        self.n_links += 1
        file = {"cycle_index": 0, "name": self.name, "size_bytes": len(CONTENT), "sha256": self.sha256}
        return httpx.Response(200, json={"items": [{**file, "url": f"http://store/{self.n_links}"}]})

    def _give(self, request: httpx.Request) -> httpx.Response:
        if int(request.url.path[1:]) < self.good_link:
            return httpx.Response(403)
        begin = int(request.headers.get("range", "bytes=0-")[6:-1]) if self.has_ranges else 0
        self.ranges.append(begin)
        status, said = (206, {"Content-Range": f"bytes {begin}-/*"}) if begin else (200, {})
        if self.breaks:
            self.breaks -= 1
            return httpx.Response(status, headers=said, stream=Broken(self.content[begin : begin + 1000]))
        return httpx.Response(status, headers=said, stream=httpx.ByteStream(self.content[begin:]))


@pytest.fixture
def answered_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Handler], None]:
    """Have every HTTP client of the library answered by a function, and no pause last."""

    def answer(handler: Handler) -> None:
        monkeypatch.setattr(
            senders.httpx, "Client", lambda **given: REAL(**given, transport=httpx.MockTransport(handler))
        )
        monkeypatch.setattr(senders.time, "sleep", lambda _: None)

    return answer


def test_a_broken_download_goes_on_where_it_broke(tmp_path: Path, answered_by: Any) -> None:
    store = Store(breaks=3)
    answered_by(store)
    with Client(URL) as client:
        pulled = client.jobs.pull("job_1", tmp_path)
        assert (tmp_path / "cycle_0" / store.name).read_bytes() == CONTENT
        assert store.ranges == [0, 1000, 2000, 3000]
        assert [file.is_new for file in pulled.files] == [True]
        again = client.jobs.pull("job_1", tmp_path)
    assert [file.is_new for file in again.files] == [False]
    assert len(store.ranges) == 4
    assert [path.name for path in (tmp_path / "cycle_0" / "sae").iterdir()] == ["sae_weights.safetensors"]


def test_a_pull_that_was_given_up_is_gone_on_with_by_the_next(tmp_path: Path, answered_by: Any) -> None:
    store = Store(breaks=1)
    gone = httpx.Response(503)
    answered_by(lambda request: store(request) if store.breaks or request.url.host != "store" else gone)
    with Client(URL) as client, pytest.raises(Unavailable):
        client.jobs.pull("job_1", tmp_path)
    assert not (tmp_path / "cycle_0" / store.name).exists()
    answered_by(store)
    with Client(URL) as client:
        client.jobs.pull("job_1", tmp_path)
    assert (tmp_path / "cycle_0" / store.name).read_bytes() == CONTENT
    assert store.ranges == [0, 1000]


def test_a_store_without_ranges_begins_anew_and_one_that_gives_nothing_is_unavailable(
    tmp_path: Path, answered_by: Any
) -> None:
    store = Store(breaks=1, has_ranges=False)
    answered_by(store)
    with Client(URL) as client:
        client.jobs.pull("job_1", tmp_path)
    assert (tmp_path / "cycle_0" / store.name).read_bytes() == CONTENT
    store = Store()
    answered_by(lambda request: store(request) if request.url.host != "store" else httpx.Response(503))
    with Client(URL) as client, pytest.raises(Unavailable, match=r"status 503\. Pull again to go on"):
        client.jobs.pull("job_1", tmp_path / "other")


def test_links_that_expired_are_asked_for_anew_but_not_for_ever(tmp_path: Path, answered_by: Any) -> None:
    store = Store()
    store.good_link = 3
    answered_by(store)
    with Client(URL) as client:
        client.jobs.pull("job_1", tmp_path)
        assert (tmp_path / "cycle_0" / store.name).read_bytes() == CONTENT
        assert store.n_links == 3
        store.good_link = 1000
        with pytest.raises(DmsaeError, match=r"refused sae/sae_weights\.safetensors with status 403"):
            client.jobs.pull("job_1", tmp_path / "other")


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"!", CONTENT + b"more", CONTENT * 3])
def test_other_bytes_are_refused_and_nothing_is_written(
    tmp_path: Path, answered_by: Any, content: bytes
) -> None:
    answered_by(Store(content=content))
    with Client(URL) as client, pytest.raises(BytesDiffer, match="sha256"):
        client.jobs.pull("job_1", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "sae/../../evil", "a\\b"])
def test_a_server_cannot_name_a_file_outside_the_folder(tmp_path: Path, answered_by: Any, name: str) -> None:
    store = Store()
    store.name = name
    answered_by(store)
    with Client(URL) as client, pytest.raises(DmsaeError, match="outside its folder"):
        client.jobs.pull("job_1", tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_only_cycles_that_are_stored_are_pulled(tmp_path: Path, answered_by: Any) -> None:
    answered_by(Store())
    with Client(URL) as client:
        assert client.jobs.pull("job_1", tmp_path, cycle=-1).cycles == (0,)
        for cycle in (3, -2):
            with pytest.raises(NotFound, match=f"cycle = {cycle}: .* stored: 0"):
                client.jobs.pull("job_1", tmp_path, cycle=cycle)


def test_a_disk_that_cannot_be_written_is_told_in_one_sentence(tmp_path: Path, answered_by: Any) -> None:
    (tmp_path / "cycle_0").write_text("a file where a folder belongs")
    answered_by(Store())
    with Client(URL) as client, pytest.raises(DmsaeError, match="cannot be written"):
        client.jobs.pull("job_1", tmp_path)


@pytest.mark.parametrize(
    ("server", "client", "is_fit"),
    [
        ("0.1.0", "0.1.9", True),
        ("0.2.0", "0.1.0", True),
        ("0.1.0", "0.2.0", False),
        ("1.0.0", "0.9.0", False),
        ("1.2.0", "2.0.0", False),
        ("1.10.0", "1.9.0", True),
        ("nonsense", "0.1.0", False),
    ],
)
def test_a_client_understands_its_own_major_version_as_new_or_newer(
    server: str, client: str, *, is_fit: bool
) -> None:
    assert is_understood(server, client) is is_fit


def test_an_unfit_server_is_refused_before_anything_is_changed(answered_by: Any) -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.method)
        return httpx.Response(200, json={"state": "queued"}, headers={VERSION_HEADER: "7.3.1"})

    answered_by(answer)
    with Client(URL) as client:
        with pytest.raises(VersionMismatch) as refused:
            client.jobs.cancel("job_1")
        with pytest.raises(VersionMismatch):
            client.jobs.get("job_1")
    assert seen == ["GET", "GET"]
    assert "7.3.1" in refused.value.message
    assert VERSION in refused.value.message
    assert "Install the client of version 7.3.1" in refused.value.message


def test_the_package_says_the_version_that_the_code_says() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


def test_the_client_and_its_commands_load_nothing_of_the_service_or_the_method() -> None:
    program = (
        "import sys, dmsae.client.client, dmsae.cli; "
        "print([name for name in ('torch', 'sqlalchemy', 'boto3', 'celery', 'fastapi', 'numpy', 'pandas') "
        "if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_rows_need_pandas_only_for_a_table(answered_by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answered_by(lambda _: httpx.Response(200, json={"items": [{"latent_id": "a"}], "next_cursor": None}))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with Client(URL) as client:
        assert list(client.distillations.lineage("job_1")) == [{"latent_id": "a"}]
        with pytest.raises(DmsaeError, match="pip install pandas"):
            client.distillations.lineage("job_1").to_pandas()


def test_a_wait_goes_over_outages_and_ends_with_the_job(answered_by: Any) -> None:
    states = iter([(200, "running"), (503, ""), (304, ""), (200, "failed")])

    def answer(_: httpx.Request) -> httpx.Response:
        status, state = next(states)
        return httpx.Response(status, json={"state": state, "version": 3})

    answered_by(answer)
    with Client(URL) as client:
        assert client.jobs.wait("job_1")["state"] == "failed"
    assert next(states, None) is None


def test_a_wait_ends_when_its_time_is_over(answered_by: Any) -> None:
    answered_by(lambda _: httpx.Response(200, json={"state": "running", "version": 3}))
    with Client(URL) as client, pytest.raises(TimeoutError, match="job_1 is still running after 0 s"):
        client.jobs.wait("job_1", timeout_s=0)


def test_the_asynchronous_client_tells_errors_alike() -> None:
    async def ask() -> None:
        async with AsyncClient(URL) as client:
            await client.jobs.get("job_1")

    with pytest.raises(Unavailable, match="does not answer"):
        asyncio.run(ask())


@pytest.mark.parametrize("url", ["lab", "ftp://lab", "http://", "http://[", "", "http://a\nb"])
def test_a_url_that_cannot_be_one_is_refused_by_name(url: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="url = "):
        change_profile(read_profiles(tmp_path / "config.toml"), "lab", url=url)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def test_profiles_are_kept_for_their_owner_alone_and_say_which_api_is_meant(env: dict[str, str]) -> None:
    path = config_path(env)
    assert find_api(None, None, env=env) == Profile()
    profiles = change_profile(read_profiles(path), "lab", url="https://lab", key="secret")
    write_profiles(change_profile(profiles, "default", url="https://other"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert find_api(None, None, env=env) == Profile("https://other", None)
    assert find_api(None, None, profile="lab", env=env) == Profile("https://lab", "secret")
    assert find_api(None, None, env={**env, "DMSAE_PROFILE": "lab"}).key == "secret"
    assert find_api(None, "mine", profile="lab", env=env).key == "mine"
    assert "secret" not in repr(read_profiles(path))
    with pytest.raises(NotFound, match="known: default, lab"):
        find_api(None, None, profile="home", env=env)


def test_a_profiles_key_goes_to_no_other_url(env: dict[str, str]) -> None:
    write_profiles(
        change_profile(read_profiles(config_path(env)), "default", url="https://lab", key="secret")
    )
    assert find_api("https://elsewhere", None, env=env) == Profile("https://elsewhere", None)
    assert find_api(None, None, env={**env, "DMSAE_URL": "https://b", "DMSAE_API_KEY": "k"}) == Profile(
        "https://b", "k"
    )


def test_a_file_with_a_key_that_others_may_read_is_refused(env: dict[str, str]) -> None:
    path = config_path(env)
    write_profiles(change_profile(read_profiles(path), "default", url="https://lab"))
    os.chmod(path, 0o644)
    assert find_api(None, None, env=env).url == "https://lab"
    write_profiles(change_profile(read_profiles(path), "default", key="secret"))
    os.chmod(path, 0o640)
    with pytest.raises(DmsaeError, match="permissions 0640 let others at it: chmod 600"):
        find_api(None, None, env=env)


@pytest.mark.parametrize(
    "text", ["profile = 3", "[profiles.a]\nurll = 'x'", "nonsense", "other = 1", "[profiles]\na = 1"]
)
def test_a_file_that_says_what_nothing_reads_is_refused(env: dict[str, str], text: str) -> None:
    path = config_path(env)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(BadRequest, match=r"config\.toml"):
        read_profiles(path)


def run_dmsae(*arguments: str, env: dict[str, str], text: str = "") -> subprocess.CompletedProcess[str]:
    program = "import sys; from dmsae.cli import main; sys.argv[0] = 'dmsae'; main()"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DMSAE_")}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True, text=True, check=False, timeout=60, input=text, env={**kept, **env},
    )  # fmt: skip


def test_config_is_set_and_shown_and_never_shows_a_key(env: dict[str, str]) -> None:
    for arguments, text in (
        (("config", "set", "url", "https://lab.example"), ""),
        (("config", "set", "key"), "very-secret\n"),
    ):
        done = run_dmsae("--profile", "lab", *arguments, env=env, text=text)
        assert done.returncode == 0, done.stderr
        assert "very-secret" not in done.stdout + done.stderr
    assert run_dmsae("config", "set", "profile", "lab", env=env).returncode == 0
    shown = (
        run_dmsae("config", "show", env=env).stdout + run_dmsae("config", "show", "--json", env=env).stdout
    )
    assert "very-secret" not in shown
    assert json.loads(shown.splitlines()[-1])["profiles"] == {
        "lab": {"url": "https://lab.example", "has_key": True}
    }
    assert find_api(None, None, env=env) == Profile("https://lab.example", "very-secret")


def test_keys_are_asked_of_a_named_profiles_api(env: dict[str, str]) -> None:
    write_profiles(change_profile(read_profiles(config_path(env)), "lab", url=URL))
    done = run_dmsae("--profile", "lab", "keys", "list", env=env)
    assert (done.returncode, URL in done.stderr) == (3, True)


def test_exit_statuses_tell_what_went_wrong(env: dict[str, str], tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text("{")
    for status, *arguments in (
        (3, "pull", "job_1", "--url", URL),
        (2, "pull"),
        (2, "pull", "job_1", "--cycle", "x"),
        (1, "submit", str(settings)),
        (1, "submit", str(tmp_path / "none.json")),
        (1, "cancel", "job_1", "--url", "lab"),
        (1, "--profile", "none", "status", "job_1"),
    ):
        done = run_dmsae(*map(str, arguments), env=env)
        assert done.returncode == status, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
        assert status == 2 or len(done.stderr.splitlines()) == 1


def test_commands_and_options_are_completed(env: dict[str, str]) -> None:
    asked = {"_DMSAE_COMPLETE": "complete_bash", "COMP_WORDS": "dmsae pu", "COMP_CWORD": "1"}
    assert run_dmsae(env={**env, **asked}).stdout.split() == ["pull"]
    assert "complete -o default -F" in run_dmsae(env={**env, "_DMSAE_COMPLETE": "source_bash"}).stdout


def test_both_clients_offer_the_same() -> None:
    with Client(URL) as client:
        awaited = AsyncClient(URL)
        asyncio.run(awaited.close())
        assert set(vars(awaited)) == set(vars(client))
        for name in set(vars(client)) - {"_sender"}:
            assert set(dir(getattr(awaited, name))) == set(dir(getattr(client, name)))
