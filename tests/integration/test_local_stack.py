"""`dmsae up` and `down` as a person sees them: real processes, killed and started again."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from dmsae.local import daemon, ports
from dmsae.local.passwords import Passwords
from dmsae.local.paths import DataFolder
from dmsae.local.state import Run, end_leftovers, read_run
from dmsae.service.objects import ObjectStore
from dmsae.service.process_marks import ProcessMark
from dmsae.service.settings import Settings

SERVICES = {"postgres", "valkey", "s3"}
PROGRAMS = {"api", "worker-cpu-0", "sweeper"}


def run_dmsae(
    *arguments: str, become: tuple[str, ...] = (sys.executable,), settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, with no other `DMSAE_*` variables than these."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("DMSAE_")}
    env |= settings or {}
    command = [*become, "-m", "dmsae.cli", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def wait_for(is_so: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.1)


def run_of(folder: DataFolder) -> Run:
    run = read_run(folder)
    assert run is not None
    return run


@pytest.fixture(scope="module")
def folder() -> Iterator[DataFolder]:
    """A data folder below two others, away from pytest's own folders; at the end nothing of it runs."""
    top = Path(tempfile.mkdtemp(prefix="dmsae-stack-"))
    (top / "parent").mkdir(mode=0o755)
    folder = DataFolder(top / "parent" / ".dmsae")
    yield folder
    run = read_run(folder)
    run_dmsae("down", "--data", str(folder.root))
    assert run is None or not any(child.find() for child in (run.supervisor, *run.children.values()))
    shutil.rmtree(top)


@pytest.fixture
def url(folder: DataFolder) -> str:
    """Where the folder's stack answers; it is started if it does not run."""
    found = run_dmsae("up", "--data", str(folder.root), "--detach")
    assert found.returncode == 0, found.stderr
    return str(run_of(folder).url)


@pytest.fixture
def settings(folder: DataFolder, url: str, monkeypatch: pytest.MonkeyPatch) -> Settings:  # noqa: ARG001
    for name, value in daemon.stack_environment(folder.root).items():
        if name.startswith("DMSAE_"):
            monkeypatch.setenv(name, value)
    return Settings()


def test_up_answers_says_so_once_and_keeps_its_folder_private(folder: DataFolder, url: str) -> None:
    assert httpx.get(f"{url}/readyz").status_code == 200
    assert set(run_of(folder).children) == SERVICES | PROGRAMS
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder.root, folder.secrets_file)}
    assert modes == {".dmsae": 0o700, "secrets.json": 0o600}
    assert stat.S_IMODE(folder.root.parent.stat().st_mode) == 0o755
    secrets = json.loads(folder.secrets_file.read_text())
    command_lines = [
        " ".join(psutil.Process(child.pid).cmdline()) for child in run_of(folder).children.values()
    ]
    assert not any(secret in line for secret in secrets.values() for line in command_lines)
    again = run_dmsae("up", "--data", str(folder.root))
    assert again.returncode == 0
    assert "already running" in again.stdout
    assert url in again.stdout


def test_a_killed_child_is_started_again(folder: DataFolder, url: str) -> None:
    before = run_of(folder).children
    for child in before.values():
        os.kill(child.pid, signal.SIGKILL)

    def all_are_back() -> bool:
        now = run_of(folder).children
        return all(now[name] != before[name] and now[name].find() for name in before)

    wait_for(all_are_back)
    wait_for(lambda: _is_ready(url), timeout_s=30)


def test_what_was_stored_is_there_again_after_down_and_up(
    folder: DataFolder, settings: Settings, tmp_path: Path
) -> None:
    database_url = settings.database_url.get_secret_value().replace("+psycopg", "")
    with psycopg.connect(database_url) as connection:
        connection.execute("INSERT INTO owners (id, name) VALUES ('own_1', 'kept')")
    (tmp_path / "kept").write_text("kept")
    with closing(ObjectStore(settings)) as store:
        stored = store.put_file("kept", tmp_path / "kept")
    run = run_of(folder)

    assert run_dmsae("down", "--data", str(folder.root)).returncode == 0
    assert not any(child.find() for child in (run.supervisor, *run.children.values()))
    assert run_dmsae("status", "--data", str(folder.root)).returncode == 1

    assert run_dmsae("up", "--data", str(folder.root), "--detach").returncode == 0
    assert run_of(folder).url == run.url, "the port is remembered"
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT name FROM owners WHERE id = 'own_1'").fetchone() == ("kept",)
    with closing(ObjectStore(settings)) as store:
        store.get_file("kept", tmp_path / "read", sha256=stored.sha256)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux'")
def test_kill_9_of_the_supervisor_leaves_no_orphan_and_up_works_again(folder: DataFolder, url: str) -> None:
    run = run_of(folder)
    with psutil.Process(run.supervisor.pid).oneshot():
        below = psutil.Process(run.supervisor.pid).children(recursive=True)
    assert len(below) > len(SERVICES | PROGRAMS)

    os.kill(run.supervisor.pid, signal.SIGKILL)

    wait_for(lambda: not any(process.is_running() for process in below), timeout_s=10)
    assert folder.run_file.exists(), "the half-dead run is still written down"
    again = run_dmsae("up", "--data", str(folder.root), "--detach")
    assert again.returncode == 0, again.stderr
    assert httpx.get(f"{url}/readyz").status_code == 200


def test_a_port_in_use_is_named_with_its_holder_and_nothing_is_started(tmp_path: Path) -> None:
    port = ports.pick_free(1)[0]
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=tmp_path) as holder:
        try:
            wait_for(lambda: not ports.is_free(port))
            found = run_dmsae("up", "--data", str(tmp_path / "data"), "--port", str(port))
        finally:
            holder.kill()
    assert found.returncode == 1
    assert f"port = {port}" in found.stderr
    assert f"pid {holder.pid}" in found.stderr
    assert not (tmp_path / "data" / "postgres").exists()


def test_a_folder_of_another_postgresql_is_refused_with_the_next_step(tmp_path: Path) -> None:
    assert run_dmsae("down", "--data", str(tmp_path)).returncode == 0
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("16\n")
    (tmp_path / "secrets.json").write_text(
        json.dumps(dict.fromkeys(_password_names(), "x")), encoding="utf-8"
    )
    found = run_dmsae("up", "--data", str(tmp_path))
    assert found.returncode == 1
    assert "written by PostgreSQL 16" in found.stderr
    assert "pg_dump" in found.stderr
    assert (tmp_path / "postgres" / "PG_VERSION").read_text() == "16\n"


def test_real_parts_replace_the_embedded_ones(stack_env: dict[str, str], tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    try:
        found = run_dmsae("up", *data, "--detach", "--workers", "2", settings=stack_env)
        assert found.returncode == 0, found.stderr
        run = run_of(DataFolder(tmp_path / "data"))
        assert set(run.children) == PROGRAMS | {"worker-cpu-1"}
        assert httpx.get(f"{run.url}/readyz").status_code == 200
    finally:
        run_dmsae("down", *data, settings=stack_env)
    assert not (tmp_path / "data" / "postgres").exists()


def test_leftovers_are_ended_only_if_they_are_ours(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        subprocess.Popen(sleep, start_new_session=True) as ours,
        subprocess.Popen(sleep, start_new_session=True) as stranger,
    ):
        later = replace(ProcessMark.of(stranger.pid), started_s=-100.0)
        children = {"ours": ProcessMark.of(ours.pid), "stranger": later}
        Run(ProcessMark(ours.pid, 0.0), children=children).write(folder)

        assert end_leftovers(folder) == ["ours"]

        assert ours.wait(timeout=5) != 0
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root to become another"
)
def test_an_unprivileged_user_can_run_the_stack(url: str) -> None:
    """Beside the other stack, whose ports are taken: others are chosen."""
    become = _become_nobody()
    top = Path(tempfile.mkdtemp(prefix="dmsae-nobody-"))
    os.chown(top, 65534, 65534)
    data = ("--data", str(top / "data"))
    try:
        found = run_dmsae("up", *data, "--detach", become=become)
        assert found.returncode == 0, found.stderr
        run = run_of(DataFolder(top / "data"))
        assert run.url != url
        assert httpx.get(f"{run.url}/readyz").status_code == 200
        owners = {psutil.Process(child.pid).uids().real for child in run.children.values()}
        assert owners == {65534}
        assert run_dmsae("down", *data, become=become).returncode == 0
        assert not any(child.find() for child in run.children.values())
    finally:
        run_dmsae("down", *data, become=become)
        shutil.rmtree(top)


def _become_nobody() -> tuple[str, ...]:
    """Give the command that runs this Python as nobody, where nobody may read it."""
    drop = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    become = (*drop, "env", "-C", "/", sys.executable)
    probe = [*become, "-c", "import dmsae.local.daemon"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("another user cannot read this Python environment")
    return become


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=6).status_code == 200
    except httpx.HTTPError:
        return False


def _password_names() -> list[str]:
    return [field.name for field in fields(Passwords)]
