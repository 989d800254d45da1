"""What several commands share: their options, how they reach the database or the API, and what they say."""

import json
import os
from collections.abc import Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column

if TYPE_CHECKING:
    from dmsae.client.client import Client

DEFAULT_DATA = Path(".dmsae")
NAMED_PROFILE: ContextVar[str | None] = ContextVar("NAMED_PROFILE", default=None)
"""What `dmsae --profile` or `DMSAE_PROFILE` says, for the command that runs."""

Data = Annotated[Path, typer.Option("--data", help="Data folder of the local stack.")]
Url = Annotated[
    str | None,
    typer.Option("--url", envvar="DMSAE_URL", help="The API; default: the local stack's, or a profile's."),
]
Api = Annotated[
    str | None,
    typer.Option("--url", envvar="DMSAE_URL", help="The API to ask; default: the database itself."),
]
"""For what works in the database as well, where no API is named."""
Key = Annotated[
    str | None, typer.Option("--key", envvar="DMSAE_API_KEY", help="API key.", show_default=False)
]
JobId = Annotated[str, typer.Argument(help="Id of the job.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, one document a line.")]


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


def is_over_http(url: str | None) -> bool:
    """Whether an API is named to do it, rather than the database."""
    return url is not None or NAMED_PROFILE.get() is not None


def over_http(url: str | None, key: str | None, method: str, path: str, **more: Any) -> dict[str, Any]:
    """Ask the API that is named, and give its answer.

    Raises:
        DmsaeError: it refuses, or does not answer.
    """
    with connect(url, key, DEFAULT_DATA) as client:
        answer: dict[str, Any] = client.request(method, path, **more)
        return answer


def connect(url: str | None, key: str | None, data: Path) -> "Client":
    """Give a client of the API that was named, else of a named profile, a local stack, the chosen profile.

    Raises:
        DmsaeError: the file of profiles is needed and cannot be used.
    """
    from dmsae.client.client import Client

    profile = NAMED_PROFILE.get()
    local = local_url(data) if url is None and profile is None else None
    return Client(url or local, key, profile=profile)


def local_url(data: Path) -> str | None:
    """Give the API that the data folder tells of, if it tells of one."""
    try:
        url = json.loads((data / "run.json").read_text())["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(url) if url else None


def id_column(name: str) -> Column:
    """Head a column of ids: where the terminal is narrow they go on in the next line, and are never cut."""
    return Column(name, overflow="fold")


def print_lines(found: Iterable[Any]) -> None:
    """Print each as one line of JSON."""
    for entry in found:
        typer.echo(json.dumps(entry))


def tell(as_json: bool, text: str, facts: Any) -> None:
    """Say what came of a command: in words, or as one line of JSON."""
    typer.echo(json.dumps(facts) if as_json else text)
