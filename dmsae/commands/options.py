"""What several commands share: their options, and how they reach the database or the API."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_DATA = Path(".dmsae")
DEFAULT_URL = "http://127.0.0.1:8000"

Data = Annotated[Path, typer.Option("--data", help="Data folder of the local stack.")]
Url = Annotated[
    str | None, typer.Option("--url", envvar="DMSAE_URL", help="The API; default: the local stack's.")
]
Key = Annotated[
    str | None, typer.Option("--key", envvar="DMSAE_API_KEY", help="API key.", show_default=False)
]
JobId = Annotated[str, typer.Argument(help="Id of the job.")]


def in_database(data: Path, use_case: Any) -> Any:
    """Run a use case in one transaction; nobody is woken."""
    from dmsae.service.database import Database

    database = Database(database_url(data), wake_up=lambda _: None, pool_size=1)
    try:
        return database.run(use_case)
    finally:
        database.dispose()


def database_url(data: Path) -> str:
    """Give the real database where one is set, else the running stack's."""
    if given := os.environ.get("DMSAE_DATABASE_URL"):
        return given
    from dmsae.local import daemon

    return daemon.stack_environment(data)["DMSAE_DATABASE_URL"]


def api_url(given: str | None, data: Path) -> str:
    """Give the API that was named, else the one that the data folder tells of, else the default."""
    if given is not None:
        return given
    try:
        return str(json.loads((data / "run.json").read_text())["url"] or DEFAULT_URL)
    except (OSError, ValueError, KeyError):
        return DEFAULT_URL
