"""`dmsae job`: look at, cancel, retry, clone and delete jobs, over HTTP."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from dmsae.commands.options import DEFAULT_DATA, Data, JobId, Key, Url, api_url
from dmsae.errors import BadRequest

job_app = typer.Typer(help="Jobs, over HTTP.", no_args_is_help=True)

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="What is to differ: sae.k=64, seed=2, data.split=[0.8,0.1,0.1]; repeatable."),
]


@job_app.command("show")
def show_job(job_id: JobId, url: Url = None, key: Key = None, data: Data = DEFAULT_DATA) -> None:
    """Show a job: state, progress, config."""
    from dmsae.client.client import Client

    with Client(api_url(url, data), key) as client:
        typer.echo(json.dumps(client.jobs.get(job_id), indent=2))


@job_app.command("cancel")
def cancel_job(job_id: JobId, url: Url = None, key: Key = None, data: Data = DEFAULT_DATA) -> None:
    """Cancel a job."""
    from dmsae.client.client import Client

    with Client(api_url(url, data), key) as client:
        typer.echo(client.jobs.cancel(job_id)["state"])


@job_app.command("retry")
def retry_job(job_id: JobId, url: Url = None, key: Key = None, data: Data = DEFAULT_DATA) -> None:
    """Run a failed job again, from its failed cycle on."""
    from dmsae.client.client import Client

    with Client(api_url(url, data), key) as client:
        job = client.jobs.retry(job_id)
    typer.echo(f"{job_id} is {job['state']}, run {job['run']}.")


@job_app.command("clone")
def clone_job(
    job_id: JobId,
    settings: Settings = None,
    name: Annotated[str | None, typer.Option("--name", help="What to call it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would be.")] = False,
    reuse: Annotated[
        bool,
        typer.Option("--reuse", help="Take a finished job with the same result instead."),
    ] = False,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Submit another job with a job's settings, and print its id."""
    from dmsae.client.client import Client

    changes = parse_settings(settings or ())
    with Client(api_url(url, data), key) as client:
        answer = client.jobs.clone(job_id, changes, name=name, is_dry_run=dry_run, is_reuse=reuse)
    typer.echo(json.dumps(answer, indent=2) if dry_run else answer.get("id", answer.get("group_id")))


def parse_settings(given: Sequence[str]) -> dict[str, Any]:
    """Make settings of `section.name=value`; a value is JSON or, if it is none, a word.

    Raises:
        BadRequest: one has no name or no `=`, or stands within another one.
    """
    settings: dict[str, Any] = {}
    for text in given:
        name, is_set, value = text.partition("=")
        if not is_set or not all(path := name.split(".")):
            raise BadRequest(f"--set {text!r}: must be NAME=VALUE, such as sae.k=64.")
        section: Any = settings
        for part in path[:-1]:
            section = section.setdefault(part, {}) if isinstance(section, dict) else section
        if not isinstance(section, dict) or path[-1] in section:
            raise BadRequest(f"--set {text!r}: {name} was set before.")
        section[path[-1]] = _value(value)
    return settings


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@job_app.command("delete")
def delete_job(job_id: JobId, url: Url = None, key: Key = None, data: Data = DEFAULT_DATA) -> None:
    """Delete a job that has ended, with all that it stored."""
    from dmsae.client.client import Client

    with Client(api_url(url, data), key) as client:
        client.jobs.delete(job_id)
    typer.echo(f"{job_id} is deleted.")
