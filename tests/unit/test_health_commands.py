"""The health checks of processes: what a container or a cluster asks, and what it is told."""

import os
import time
from pathlib import Path

import httpx
import pytest

from api import probe
from worker import alive


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(alive.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"dmsae-alive-{os.getuid()}"


def test_a_process_that_turned_just_now_is_alive_and_one_that_never_began_is_not() -> None:
    alive.note_alive("cuda:0")
    alive.main(["cuda:0"])
    with pytest.raises(SystemExit, match="sweeper has not begun"):
        alive.main(["sweeper"])


def test_a_process_that_hangs_is_told_with_how_long_it_has_not_turned(own_folder: Path) -> None:
    alive.note_alive("cuda:0")
    os.utime(own_folder / "cuda-0", (time.time() - 300, time.time() - 300))
    with pytest.raises(SystemExit, match=r"cuda:0 has not turned for 30\d s"):
        alive.main(["cuda:0"])
    alive.main(["cuda:0", "--within", "900"])


def test_a_sign_of_life_that_cannot_be_written_stops_nobody(own_folder: Path) -> None:
    own_folder.write_text("a file where the folder should be")
    alive.note_alive("cuda:0")
    assert alive.seconds_since("cuda:0") is None


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name, value in {
        "DATABASE_URL": "postgresql+psycopg://u:p@h/d", "BROKER_URL": "redis://:p@h/0",
        "S3_ENDPOINT_URL": "http://h", "S3_ACCESS_KEY": "a", "S3_SECRET_KEY": "s", "PORT": "8001",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"DMSAE_{name}", value)
    asked: list[str] = []

    def answer(url: str, **_: object) -> httpx.Response:
        asked.append(url)
        return httpx.Response(503 if url.endswith("/readyz") else 200, text="redis: failed")

    monkeypatch.setattr(probe.httpx, "get", answer)
    return asked


@pytest.mark.parametrize(
    ("host", "expected"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("192.0.2.1", "192.0.2.1")],  # noqa: S104
)
def test_the_api_is_asked_where_it_listens_and_over_loopback_if_that_is_everywhere(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, host: str, expected: str
) -> None:
    monkeypatch.setenv("DMSAE_HOST", host)
    probe.main([])
    assert asked == [f"http://{expected}:8001/healthz"]


def test_an_api_whose_parts_are_away_is_told_with_its_answer(asked: list[str]) -> None:
    with pytest.raises(SystemExit, match="answers 503: redis: failed"):
        probe.main(["/readyz"])
    assert len(asked) == 1


def test_an_api_that_does_not_answer_is_told_so(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_url: str, **_: object) -> httpx.Response:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(probe.httpx, "get", refuse)
    with pytest.raises(SystemExit, match="does not answer: ConnectError"):
        probe.main([])
    assert asked == []
