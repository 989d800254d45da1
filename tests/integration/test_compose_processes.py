"""The compose file's own commands, started as processes: they begin, answer their health checks, and end."""

import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
import redis

from dmsae.local.ports import PAIR_OFFSET
from dmsae.local.services import choose_ports
from dmsae.service.objects import ObjectStore
from dmsae.service.settings import settings_from
from tests.compose_file import ROOT, required_variables
from tests.conftest import RunningServices
from tests.containers import OUTSIDE, Containers, can_run, wait_for

HTTP_PORTS = {"master": 9333, "volume": 8080, "filer": 8888, "s3": 8333}
"""Of each part of SeaweedFS in its container; gRPC at +10000."""


@pytest.fixture(scope="module")
def database_name(services: RunningServices) -> Iterator[str]:
    """An empty database, as Postgres' image makes it."""
    name = f"compose_{uuid.uuid4().hex}"
    with psycopg.connect(services.server_url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield name
    with psycopg.connect(services.server_url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return choose_ports({}, "api")


@pytest.fixture(scope="module")
def containers(
    services: RunningServices,
    database_name: str,
    ports: dict[str, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Containers]:
    """Valkey and SeaweedFS run and are healthy; Postgres is the one of all tests."""
    folder = tmp_path_factory.mktemp("compose")
    (folder / "objects").mkdir()
    postgres = services.parts.postgres
    given = {name: uuid.uuid4().hex for name in required_variables()}
    given |= {"POSTGRES_PASSWORD": postgres.password, "S3_PUBLIC_ENDPOINT_URL": "http://lab.example:8333"}
    replaced = {
        "@postgres:5432/dmsae": f"@127.0.0.1:{postgres.port}/{database_name}",
        "--port=5432": f"--port={postgres.port}",
        "@valkey:6379": f"@{OUTSIDE}:{ports['valkey']}",
        "port 6379": f"port {ports['valkey']}",
        "-p 6379": f"-p {ports['valkey']}",
        "bind * -::*": f"bind 127.0.0.1 {OUTSIDE}" if OUTSIDE != "127.0.0.1" else "bind 127.0.0.1",
        "http://seaweedfs:8333": f"http://{OUTSIDE}:{ports['s3']}",
        "http://127.0.0.1:8333": f"http://{OUTSIDE}:{ports['s3']}",
        "0.0.0.0": OUTSIDE,  # noqa: S104 - replaced, not listened on
        "-dir=/data": f"-dir={folder / 'objects'}",
    }
    for part, number in HTTP_PORTS.items():
        replaced[f"-{part}.port={number}"] = f"-{part}.port={ports[part]}"
        replaced[f"-{part}.port.grpc={number + 10000}"] = f"-{part}.port.grpc={ports[part] + PAIR_OFFSET}"
    stack = Containers(folder, given, replaced, api_port=ports["api"])
    try:
        for name in ("valkey", "seaweedfs"):
            stack.start(name)
        stack.wait_healthy("valkey")
        wait_for(
            lambda: is_store_up(stack),
            seconds=40,
            what=lambda: f"S3 answers: {stack.log('seaweedfs')}",
        )
        yield stack
    finally:
        stack.kill_all()


@pytest.fixture(scope="module")
def prepared(containers: Containers) -> Containers:
    """The one-shot services have run."""
    for name in ("migrate", "make-bucket"):
        found = containers.run(name)
        assert found.returncode == 0, found.stderr
    return containers


def is_store_up(containers: Containers) -> bool:
    _, *command = containers.services["seaweedfs"]["healthcheck"]["test"]
    if can_run(command):
        return containers.check("seaweedfs").returncode == 0
    try:
        return httpx.get(command[-1], timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_postgres_passes_the_health_check_of_the_file(containers: Containers) -> None:
    found = containers.check("postgres")
    assert (found.returncode, "accepting connections" in found.stdout) == (0, True)


def test_valkey_refuses_who_has_no_password_and_its_health_check_has_one(
    containers: Containers, ports: dict[str, int]
) -> None:
    with socket.create_connection((OUTSIDE, ports["valkey"]), timeout=5) as stranger:
        stranger.sendall(b"PING\r\n")
        assert stranger.recv(100).startswith(b"-NOAUTH")
    env = containers.services["valkey"]["environment"]
    right, env["REDISCLI_AUTH"] = env["REDISCLI_AUTH"], "wrong"
    assert containers.check("valkey").returncode != 0
    env["REDISCLI_AUTH"] = right
    assert containers.check("valkey").returncode == 0
    with redis.Redis(host=OUTSIDE, port=ports["valkey"], password=right) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


@pytest.mark.skipif(OUTSIDE == "127.0.0.1", reason="this system has one loopback address")
def test_of_the_store_only_s3_listens_beyond_its_container(
    containers: Containers, ports: dict[str, int]
) -> None:
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.pid == containers.pid("seaweedfs")
    }
    beyond = {port for address, port in listening if address != "127.0.0.1"}
    assert beyond == {ports["s3"], ports["s3"] + PAIR_OFFSET}
    assert {port for _, port in listening} == {
        ports[part] + offset for part in HTTP_PORTS for offset in (0, PAIR_OFFSET)
    }


def test_no_port_of_the_store_reads_or_deletes_anything_for_a_stranger(
    prepared: Containers, ports: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(os.urandom(100))
    store = ObjectStore(settings_from(prepared.environment("sweeper")))
    stored = store.put_file("guarded/secret", tmp_path / "secret")
    for part in HTTP_PORTS:
        host = OUTSIDE if part == "s3" else "127.0.0.1"
        refuse_stranger(f"http://{host}:{ports[part]}")
    store.get_file("guarded/secret", tmp_path / "read", sha256=stored.sha256)
    assert store.presign("guarded/secret", filename="secret").startswith("http://lab.example:8333/dmsae/")
    store.close()


def refuse_stranger(url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False) as stranger:
        for path in (
            "/dmsae/guarded/secret", "/buckets/dmsae/guarded/secret", "/buckets/dmsae?recursive=true",
            "/col/delete?collection=dmsae", "/dir/assign", "/1,01637037d6",
        ):  # fmt: skip
            for method in ("GET", "DELETE"):
                answer = stranger.request(method, path)
                assert answer.is_client_error, f"{method} {url}{path}: {answer.status_code}"


def test_the_api_starts_closed_and_the_first_key_is_made_in_its_container(prepared: Containers) -> None:
    assert prepared.check("api").returncode == 1
    assert "psutil" in prepared.run("api", "python", "-c", "import psutil").stderr, "not in this image"
    prepared.start("api")
    prepared.wait_healthy("api")
    with httpx.Client(base_url=prepared.api_url, trust_env=False) as client:
        assert client.get("/jobs").status_code == 401
        made = prepared.run("api", "dmsae", "keys", "create", "alice")
        assert made.returncode == 0, made.stderr
        key = made.stdout.split()[-1]
        assert client.get("/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert prepared.stop("api") in (0, -signal.SIGTERM)


def test_the_sweeper_turns_and_ends_in_order(prepared: Containers) -> None:
    assert prepared.check("sweeper").returncode == 1
    prepared.start("sweeper")
    prepared.wait_healthy("sweeper")
    assert prepared.stop("sweeper") == 0


def workers(services: RunningServices, database_name: str) -> list[tuple[object, ...]]:
    query = "SELECT id, device, device_name IS NOT NULL, memory_bytes > 0, stopped_at IS NULL FROM workers"
    with psycopg.connect(services.server_url(database_name)) as connection:
        return connection.execute(f"{query} ORDER BY id").fetchall()


def test_a_worker_registers_its_device_passes_its_check_and_says_goodbye(
    prepared: Containers, services: RunningServices, database_name: str
) -> None:
    """The GPU's command differs from this one by its device alone: see `tests/unit/test_compose.py`."""
    name = "worker-cpu-0"
    assert prepared.check(name).returncode == 1
    prepared.start(name)
    prepared.wait_healthy(name)
    worker_id = f"{os.uname().nodename}.cpu-0"
    assert workers(services, database_name) == [(worker_id, "cpu:0", True, True, True)]
    assert (prepared.folder / "dmsae" / "locks" / "cpu-0.lock").exists()
    assert prepared.stop(name) == 0
    assert workers(services, database_name) == [(worker_id, "cpu:0", True, True, False)]


def test_the_slurm_unit_starts_the_same_worker_and_passes_sigterm_on(
    prepared: Containers, services: RunningServices, database_name: str, tmp_path: Path
) -> None:
    (tmp_path / "checkout" / ".venv").mkdir(parents=True)
    (tmp_path / "checkout" / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    variables = prepared.services["worker-cpu-0"]["environment"]
    lines = [f"export {name}='{value}'\n" for name, value in variables.items() if name.startswith("DMSAE_")]
    (tmp_path / "env").write_text("".join(lines))
    env = {
        "PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "HOME": str(tmp_path), "DMSAE_DEVICE": "cpu:7",
        "DMSAE_LOCK_DIR": str(tmp_path / "locks"), "DMSAE_ENV_FILE": str(tmp_path / "env"),
        "DMSAE_CHECKOUT": str(tmp_path / "checkout"),
    }  # fmt: skip
    worker_id = f"{os.uname().nodename}.cpu-7"
    with subprocess.Popen(["bash", ROOT / "deploy/worker.sbatch"], env=env, start_new_session=True) as job:
        try:
            wait_for(
                lambda: (worker_id, "cpu:7", True, True, True) in workers(services, database_name),
                seconds=40, what=lambda: "the worker registers",
            )  # fmt: skip
            job.terminate()
            assert job.wait(30) == 0
        finally:
            job.kill()
    assert (worker_id, "cpu:7", True, True, False) in workers(services, database_name)
