"""The command line and its client: what the base install can do, and how errors look."""

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from dmsae import cli
from dmsae.client.client import Client
from dmsae.commands import options
from dmsae.errors import Conflict, DmsaeError, InvalidConfig, NotFound, Unavailable
from dmsae.local.demo_progress import describe_numbers, describe_place, done_fraction

ROOT = Path(__file__).parents[2]
EXTRAS = (
    "alembic", "boto3", "celery", "fastapi", "gguf", "jaxtyping", "matplotlib", "numpy", "psutil", "psycopg",
    "pydantic_settings", "redis", "scipy", "sqlalchemy", "structlog", "torch", "transformers", "uuid_utils",
    "uvicorn",
)  # fmt: skip
BLOCKED = f"""
import sys
for name in {EXTRAS!r}:
    sys.modules[name] = None
from dmsae.cli import main
sys.argv[0] = "dmsae"
main()
"""


def run_with_the_base_install(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line where no extra can be imported."""
    command = [sys.executable, "-c", BLOCKED, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_base_install_gives_help_for_every_command() -> None:
    found = run_with_the_base_install("--help")
    assert found.returncode == 0, found.stderr
    for name in (
        "up",
        "down",
        "status",
        "demo",
        "worker",
        "migrate",
        "keys",
        "owners",
        "submit",
        "upload",
        "job",
    ):
        assert name in found.stdout


def test_a_command_whose_extra_is_missing_says_what_to_install() -> None:
    found = run_with_the_base_install("up")
    assert found.returncode == 1
    assert "pip install 'dmsae[local]'" in found.stderr
    assert "Traceback" not in found.stderr


def test_the_wheel_holds_the_package_alone_and_its_command_runs_from_an_empty_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(_copy_of_the_project(tmp_path))], check=True)
    (wheel,) = tmp_path.glob("dmsae-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dmsae"}
    program = f"import sys; sys.path.insert(0, {str(wheel)!r})\n{BLOCKED}"
    found = subprocess.run(
        [sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr


def _copy_of_the_project(folder: Path) -> Path:
    """Copy what the wheel is built from: setuptools leaves its work beside the sources."""
    import shutil

    copy = folder / "project"
    shutil.copytree(ROOT / "dmsae", copy / "dmsae", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    (copy / "README.md").touch()
    return copy


def test_the_url_comes_from_the_data_folder_unless_one_is_named(tmp_path: Path) -> None:
    assert options.local_url(tmp_path) is None
    (tmp_path / "run.json").write_text(json.dumps({"url": "http://127.0.0.1:8123"}))
    assert options.local_url(tmp_path) == "http://127.0.0.1:8123"
    with options.connect(None, None, tmp_path) as local, options.connect("http://lab", None, tmp_path) as lab:
        assert str(local._sender.http.base_url) == "http://127.0.0.1:8123"
        assert str(lab._sender.http.base_url) == "http://lab"


def test_down_names_a_folder_that_is_not_there(tmp_path: Path) -> None:
    found = CliRunner().invoke(cli.app, ["down", "--data", str(tmp_path / "nothing")])
    assert isinstance(found.exception, NotFound)


@contextmanager
def client_that_gets(status: int, document: object) -> Iterator[Client]:
    """Give a client whose every request gets this answer."""
    with Client("http://127.0.0.1:1") as client:
        client._sender.http.close()
        answer = httpx.MockTransport(lambda _: httpx.Response(status, json=document))
        client._sender.http = httpx.Client(base_url="http://127.0.0.1:1", transport=answer)
        yield client


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NotFound), (409, Conflict), (503, Unavailable), (500, DmsaeError)]
)
def test_a_problem_document_becomes_the_error_of_its_kind(status: int, kind: type[DmsaeError]) -> None:
    document = {"status": status, "code": "some_code", "detail": "One sentence."}
    with client_that_gets(status, document) as client, pytest.raises(kind, match="One sentence") as caught:
        client.jobs.get("job_1")
    assert type(caught.value) is kind
    assert caught.value.fields["code"] == "some_code"


def test_refused_settings_keep_field_value_and_rule() -> None:
    refused = {"param": "sae.k", "value": 0, "rule": "must be at least 1", "code": "invalid_value"}
    document = {"status": 422, "code": "invalid_config", "detail": "...", "errors": [refused]}
    with client_that_gets(422, document) as client, pytest.raises(InvalidConfig) as caught:
        client.distillations.create({"sae": {"k": 0}})
    assert str(caught.value) == "sae.k = 0: must be at least 1"


def test_an_answer_that_is_no_problem_document_is_still_an_error() -> None:
    with client_that_gets(502, ["bad gateway"]) as client, pytest.raises(DmsaeError, match="502"):
        client.jobs.get("job_1")


def test_an_api_that_does_not_answer_is_unavailable() -> None:
    with Client("http://127.0.0.1:1") as client, pytest.raises(Unavailable, match="does not answer"):
        client.jobs.get("job_1")


def test_pages_are_read_to_the_end() -> None:
    pages = {None: {"items": [1, 2], "next_cursor": "b"}, "b": {"items": [3], "next_cursor": None}}
    with Client("http://127.0.0.1:1") as client:
        client._sender.http.close()
        client._sender.http = httpx.Client(
            base_url="http://127.0.0.1:1",
            transport=httpx.MockTransport(
                lambda request: httpx.Response(200, json=pages[request.url.params.get("cursor")])
            ),
        )
        assert list(client.distillations.lineage("job_1")) == [1, 2, 3]


def test_progress_is_told_in_words_and_as_a_fraction() -> None:
    latest = {
        "step": 50, "n_steps": 100, "n_tokens": 25_600, "n_tokens_total": 51_200, "loss": 0.5, "l0": 32.0,
        "explained_variance": 0.8,
    }  # fmt: skip
    progress = {
        "n_cycles": 4, "n_cycles_done": 1, "cycle_index": 1, "phase": "training", "latest": latest,
        "time_left_s": 125.0,
    }  # fmt: skip
    job = {"state": "running", "progress": progress}
    assert describe_place(job) == "cycle 2 of 4: training"
    assert describe_numbers(job) == "tokens 25,600/51,200  loss 0.5  L0 32.0  EV 0.800  2:05 left"
    assert done_fraction(job) == 1.5 / 4
    waiting = {**progress, "cycle_index": None, "phase": None, "latest": None, "time_left_s": None}
    assert describe_place({"state": "queued", "progress": waiting}) == "queued"
    assert describe_numbers({"state": "queued", "progress": waiting}) == ""


def test_a_narrow_terminal_breaks_an_id_and_cuts_none() -> None:
    latent_id = f"job_{'0123456789abcdef' * 2}.2.144"
    table = Table(
        options.id_column("latent"), "times selected", "last cycle", "dropped at", "last share", "max share"
    )
    table.add_row(latent_id, "3", "2", "", "0.0131", "0.0189")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    shown = [line.split("│")[1].strip() for line in console.export_text().splitlines() if line[0] == "│"]
    assert "".join(shown) == latent_id
