"""The handbook's site: whole, complete, and so made that the page's strict policy breaks nothing of it."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from starlette.testclient import TestClient
from typer.main import get_command

import api.handbook_site
from api.contract import NOWHERE
from api.main import create_app
from api.web_page import FOLDER, POLICY
from dmsae.cli import app
from dmsae.errors import FAILURES
from dmsae.service.settings import Settings, settings_from
from handbook.building import build_site
from tests.pages import ROOT

ASSETS = ROOT / "handbook" / "theme" / "assets"
ELSEWHERE = re.compile(r"\b(?:https?|wss?):|url\(\s*['\"]?//", re.IGNORECASE)
NAMESPACE = re.compile(r"http://www\.w3\.org/(?:1998/Math/MathML|2000/svg)")


class Read(HTMLParser):
    """What a page asks for, names, and leads to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.led_to: list[str] = []
        self.ids: set[str] = set()
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        if tag == "a":
            self.led_to.append(given.get("href", ""))
        elif tag in ("script", "img", "link", "iframe", "source"):
            self.asked.append(given.get("src") or given.get("href", ""))
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        self.inline += [tag] if tag == "style" or (tag == "script" and "src" not in given) else []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "docs"
    assert build_site(folder) == []
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Read]:
    return {path: Read(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


@pytest.fixture(scope="module")
def client(site: Path) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api.handbook_site, "FOLDER", site)
        with TestClient(create_app(settings_from(NOWHERE))) as client:
            yield client


def text_of(site: Path, page: str) -> str:
    return (site / page / "index.html").read_text(encoding="utf-8")


def test_every_link_of_every_built_page_leads_to_a_file_and_a_part_of_the_site(
    site: Path, pages: dict[Path, Read]
) -> None:
    assert len(pages) > 20
    for path, page in pages.items():
        for link in (*page.led_to, *page.asked):
            if link.startswith("https://") or link.endswith("../"):
                continue
            place, _, fragment = unquote(link).partition("#")
            target = (path.parent / place).resolve() if place else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (path, link)
            assert target.is_relative_to(site)
            assert not fragment or fragment in pages[target].ids, (path, link)


def test_no_page_asks_another_host_or_runs_what_is_not_a_file_of_its_own(pages: dict[Path, Read]) -> None:
    for path, page in pages.items():
        assert page.inline == [], path
        assert [asked for asked in page.asked if ELSEWHERE.search(asked) or asked.startswith("//")] == []
    for asset in ASSETS.iterdir():
        assert not ELSEWHERE.search(NAMESPACE.sub("", asset.read_text(encoding="utf-8"))), asset


def test_equations_are_drawn_by_the_browser_alone(site: Path) -> None:
    method = text_of(site, "method")
    written = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    assert method.count("<math ") == written.count("```math") > 5
    assert "\\frac" not in method
    assert written.count("(ours)") == method.count("(ours)") > 20


def test_the_reference_names_every_command_call_setting_variable_and_code(site: Path) -> None:
    command_line = text_of(site, "handbook/reference/command_line")
    group = get_command(app)
    assert all(f"dmsae {name}" in command_line for name in group.commands)
    calls = text_of(site, "handbook/reference/http")
    document = json.loads((ROOT / "docs" / "openapi.json").read_text())
    assert all(f"{m.upper()} {path}" in calls for path, found in document["paths"].items() for m in found)
    documents = text_of(site, "handbook/reference/http_documents")
    assert all(name in documents for name in document["components"]["schemas"])
    variables = text_of(site, "handbook/reference/variables")
    assert all(f"DMSAE_{name.upper()}<" in variables for name in Settings.model_fields)
    errors = text_of(site, "handbook/reference/errors")
    assert all(f"<code>{name}</code>" in errors for name in (*FAILURES, "rate_limited", "key_expired"))
    told_of = json.loads((FOLDER / "failures.json").read_text(encoding="utf-8"))
    assert told_of.keys() == FAILURES.keys()
    assert errors.count("Clone the job with a smaller <code>training.lr</code>.") == 1
    settings = text_of(site, "handbook/reference/job_settings")
    assert all(name in settings for name in ("attribution_fraction", "block_widths", "min_selected"))


def test_the_api_serves_the_handbook_under_the_pages_policy_to_anybody(client: TestClient) -> None:
    for path in ("/docs", "/docs/", "/docs/handbook", "/docs/handbook/"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.url.path == "/docs/handbook/"
        assert answer.headers["content-security-policy"] == POLICY
        assert "<h1" in answer.text
    found = client.get("/docs/search/search_index.json").json()
    assert {"handbook/tutorial/", "method/"} <= {entry["location"] for entry in found["docs"]}
    assert client.get("/docs/handbook/nowhere/").status_code == 404
    assert client.get("/docs/%2e%2e/%2e%2e/pyproject.toml").status_code == 404


def test_where_nobody_built_it_one_sentence_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.handbook_site, "FOLDER", tmp_path / "none")
    with TestClient(create_app(settings_from(NOWHERE))) as client:
        answer = client.get("/docs/handbook/")
    assert answer.status_code == 404
    assert answer.json()["detail"] == "The handbook was not built here: run `make docs` in the checkout."
