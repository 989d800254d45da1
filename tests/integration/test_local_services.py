"""The embedded services: they start, keep strangers out, and can be killed and started again."""

import base64
import contextlib
import hmac
import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psycopg
import pytest
import redis

from dmsae.errors import Unavailable
from dmsae.local import seaweedfs
from dmsae.service.objects import ObjectStore
from dmsae.service.settings import Settings
from tests.conftest import RunningServices


def test_postgres_speaks_utf8_checks_its_pages_and_asks_for_a_password(services: RunningServices) -> None:
    with psycopg.connect(services.server_url("postgres")) as connection:
        for setting, expected in (
            ("server_encoding", "UTF8"), ("data_checksums", "on"), ("fsync", "on"),
            ("unix_socket_directories", ""), ("listen_addresses", "127.0.0.1"),
        ):  # fmt: skip
            assert connection.execute(f"SHOW {setting}").fetchone() == (expected,)
        rules = connection.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules").fetchall()
    assert rules == [("scram-sha-256",)]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(services.server_url("postgres"), password="wrong")


def test_valkey_refuses_who_has_no_password_and_never_evicts(services: RunningServices) -> None:
    port = services.parts.valkey.port
    with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis(port=port, password=services.parts.valkey.password) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("save") == {"save": ""}


@pytest.mark.parametrize("part", seaweedfs.PARTS)
def test_no_port_of_the_store_serves_or_deletes_an_object_without_a_key(
    services: RunningServices, settings: Settings, tmp_path: Path, part: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(100))
    store = ObjectStore(settings)
    stored = store.put_file("guarded/secret", secret)
    paths = [
        "/dmsae/guarded/secret",
        "/buckets/dmsae/guarded/secret",
        "/buckets/dmsae?recursive=true",
        f"/{_chunk_id(services, secret.read_bytes())}",
        "/col/delete?collection=dmsae",
        "/dir/assign",
    ]
    with httpx.Client(base_url=_base_url(services, part), trust_env=False) as stranger:
        for path in paths:
            got, deleted = stranger.get(path), stranger.delete(path)
            assert got.is_client_error, f"GET {path} of {part}: {got.status_code}"
            assert deleted.is_client_error, f"DELETE {path} of {part}: {deleted.status_code}"
    store.get_file("guarded/secret", tmp_path / "read", sha256=stored.sha256)
    store.close()


def _base_url(services: RunningServices, part: str) -> str:
    return f"http://127.0.0.1:{services.parts.s3.ports[part]}"


def _chunk_id(services: RunningServices, content: bytes) -> str:
    """Read off the disk under which id the volume server keeps some bytes, and prove that it does."""
    volumes = services.parts.s3.folder.glob("dmsae_*.dat")
    volume, stored = next((path, path.read_bytes()) for path in volumes if content in path.read_bytes())
    start = stored.index(content)
    cookie, key = struct.unpack(">IQ", stored[start - 20 : start - 8])
    chunk_id = f"{volume.stem.removeprefix('dmsae_')},{key:x}{cookie:08x}"
    token = _token({"exp": int(time.time()) + 60, "fid": chunk_id}, services.parts.s3.passwords.s3_jwt_read)
    answer = httpx.get(
        f"{_base_url(services, 'volume')}/{chunk_id}", headers={"Authorization": f"Bearer {token}"}
    )
    assert answer.status_code == 200
    return chunk_id


def _token(claims: dict[str, object], key: str) -> str:
    parts = ({"alg": "HS256", "typ": "JWT"}, claims)
    signed = b".".join(_base64(json.dumps(part).encode()) for part in parts)
    return (signed + b"." + _base64(hmac.digest(key.encode(), signed, "sha256"))).decode()


def _base64(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def read_when_ready(read: Callable[[], None]) -> None:
    """Read as workers do, again after a while: S3 answers before its volumes have come back to it."""
    for _ in range(20):
        with contextlib.suppress(Unavailable):
            return read()
        time.sleep(1)
    return read()


def test_a_killed_service_can_be_started_again_and_keeps_what_it_held(
    services: RunningServices, database_url: str, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "kept").write_text("kept")
    store = ObjectStore(settings)
    stored = store.put_file("kept", tmp_path / "kept")
    server_url = database_url.replace("+psycopg", "")
    with psycopg.connect(server_url) as connection:
        connection.execute("INSERT INTO owners (id, name) VALUES ('own_1', 'kept')")
    for child in (services.postgres, services.valkey, services.s3):
        before = child.pid
        child.kill()
        assert not child.is_alive()
        child.restart()
        assert child.pid != before
    read_when_ready(lambda: store.get_file("kept", tmp_path / "read", sha256=stored.sha256))
    store.close()
    with psycopg.connect(server_url) as connection:
        assert connection.execute("SELECT name FROM owners WHERE id = 'own_1'").fetchone() == ("kept",)
