"""The web page is sent whole, small, to anybody, and under a policy that nothing in it needs bent."""

import gzip
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.main import create_app
from api.web_page import FOLDER, POLICY
from dmsae.service.settings import Settings

FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())
SOURCES = [path for path in FILES if path.suffix in (".js", ".html", ".css")]
LARGEST_BYTES = 500_000
UNSAFE = re.compile(
    r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|Function\(|srcdoc|setHTMLUnsafe)\b"
)
ELSEWHERE = re.compile(r"\b(https?|wss?)://(?!www\.w3\.org/2000/svg\b)", re.IGNORECASE)


@pytest.fixture(scope="module")
def client() -> TestClient:
    settings = Settings(
        database_url="postgresql+psycopg://nobody@127.0.0.1:1/none",
        broker_url="redis://127.0.0.1:1/0",
        s3_endpoint_url="http://127.0.0.1:1",
        s3_access_key="a",
        s3_secret_key="b",
        require_key=True,
    )
    return TestClient(create_app(settings))  # not begun: these files need nothing of what a start prepares


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


@pytest.mark.parametrize("path", ["/", "/ui/app.js"])
def test_all_of_the_page_is_sent_without_a_key_under_the_strict_policy(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert "unsafe" not in POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_each_file_is_sent_as_what_it_is(client: TestClient) -> None:
    kinds = {
        ".html": "text/html",
        ".js": "text/javascript",
        ".json": "application/json",
        ".css": "text/css",
        ".svg": "image/svg+xml",
    }
    for path in FILES:
        answer = client.get(f"/ui/{name_of(path)}")
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].partition(";")[0] == kinds[path.suffix]
        assert answer.content == path.read_bytes()
    assert client.get("/").text == (FOLDER / "index.html").read_text()


def test_what_a_browser_has_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/ui/style.css")
    assert first.headers["Cache-Control"] == "no-cache"
    again = client.get("/ui/style.css", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["Content-Security-Policy"] == POLICY


def test_all_files_together_are_far_below_what_one_page_may_send(client: TestClient) -> None:
    sent = 0
    for path in FILES:
        with client.stream("GET", f"/ui/{name_of(path)}", headers={"Accept-Encoding": "gzip"}) as answer:
            raw = b"".join(answer.iter_raw())
        if answer.headers.get("Content-Encoding") == "gzip":
            assert gzip.decompress(raw) == path.read_bytes()
        sent += len(raw)
    assert sent < LARGEST_BYTES / 2


@pytest.mark.parametrize("path", ["/ui/../main.py", "/ui/%2e%2e/main.py", "/ui//etc/passwd", "/ui/none.js"])
def test_nothing_but_the_page_lies_below_its_address(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_source_makes_markup_of_text_or_names_another_host(path: Path) -> None:
    text = path.read_text()
    assert UNSAFE.search(text) is None
    assert ELSEWHERE.search(text) is None


def test_the_markup_holds_no_script_and_no_style_of_its_own() -> None:
    markup = (FOLDER / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)", markup) == []
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=", markup) == []


def test_every_module_that_is_imported_is_there() -> None:
    for path in SOURCES:
        for module in re.findall(r'(?:from|href=|src=) ?"(/ui/[^"]+)"', path.read_text()):
            assert (FOLDER / module.removeprefix("/ui/")).is_file(), (name_of(path), module)
