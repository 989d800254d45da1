"""`dmsae job`: look at, cancel, retry, clone and delete jobs, over HTTP."""

import json
from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dmsae.commands.options import (
    DEFAULT_DATA,
    AsJson,
    Data,
    JobId,
    Key,
    Url,
    connect,
    id_column,
    print_lines,
    tell,
)
from dmsae.errors import BadRequest

job_app = typer.Typer(help="Jobs, over HTTP.", no_args_is_help=True)

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="What is to differ: sae.k=64, seed=2, data.split=[0.8,0.1,0.1]; repeatable."),
]


@job_app.command("show")
def show_job(
    job_id: JobId, as_json: AsJson = False, url: Url = None, key: Key = None, data: Data = DEFAULT_DATA
) -> None:
    """Show a job: state, progress, config."""
    with connect(url, key, data) as client:
        show(client.jobs.get(job_id), as_json=as_json)


@job_app.command("list")
def list_jobs(
    state: Annotated[str | None, typer.Option("--state", help="queued, running, succeeded, ...")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="distillation, training or probe.")] = None,
    group: Annotated[str | None, typer.Option("--group", help="Id of a group.")] = None,
    owner: Annotated[str | None, typer.Option("--owner")] = None,
    tag: Annotated[str | None, typer.Option("--tag")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Part of the model's name.")] = None,
    text: Annotated[str | None, typer.Option("--text", help="Part of its name or notes.")] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Stop after so many.")] = 50,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """List jobs, the newest first."""
    with connect(url, key, data) as client:
        jobs = client.jobs.find(
            state=state, kind=kind, group_id=group, owner=owner, tag=tag, model=model, text=text
        )
        found = list(islice(jobs, most))
    if as_json:
        print_lines(found)
        return
    table = Table(id_column("job"), "kind", "owner", "name", "state", "cycles", "created")
    for job in found:
        cycles = f"{job['progress']['n_cycles_done']}/{job['progress']['n_cycles']}"
        named = (job["id"], job["kind"], job["owner"], job["name"] or "", job["state"])
        table.add_row(*map(escape, named), cycles, job["created_at"][:19])
    Console().print(table)


def show(job: dict[str, Any], *, as_json: bool) -> None:
    """Show a job: where it stands and why, then its config."""
    if as_json:
        typer.echo(json.dumps(job))
        return
    progress = job["progress"]
    place = f"{progress['n_cycles_done']} of {progress['n_cycles']} cycles, {progress['phase'] or 'no phase'}"
    table = Table(show_header=False)
    for name in ("id", "kind", "owner", "name", "state", "state_reason", "created_at", "finished_at"):
        table.add_row(name.replace("_", " "), escape(str(job[name] or "")))
    table.add_row("progress", place)
    console = Console()
    console.print(table)
    console.print_json(json.dumps(job["config"]))


@job_app.command("cancel")
def cancel_job(
    job_id: JobId, as_json: AsJson = False, url: Url = None, key: Key = None, data: Data = DEFAULT_DATA
) -> None:
    """Cancel a job."""
    with connect(url, key, data) as client:
        job = client.jobs.cancel(job_id)
    tell(as_json, job["state"], job)


@job_app.command("retry")
def retry_job(
    job_id: JobId, as_json: AsJson = False, url: Url = None, key: Key = None, data: Data = DEFAULT_DATA
) -> None:
    """Run a failed job again, from its failed cycle on."""
    with connect(url, key, data) as client:
        job = client.jobs.retry(job_id)
    tell(as_json, f"{job_id} is {job['state']}, run {job['run']}.", job)


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
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Submit another job with a job's settings, and print its id."""
    changes = parse_settings(settings or ())
    with connect(url, key, data) as client:
        answer = client.jobs.clone(job_id, changes, name=name, is_dry_run=dry_run, is_reuse=reuse)
    text = json.dumps(answer, indent=2) if dry_run else answer.get("id", answer.get("group_id"))
    tell(as_json, str(text), answer)


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
def delete_job(
    job_id: JobId, as_json: AsJson = False, url: Url = None, key: Key = None, data: Data = DEFAULT_DATA
) -> None:
    """Delete a job that has ended, with all that it stored."""
    with connect(url, key, data) as client:
        client.jobs.delete(job_id)
    tell(as_json, f"{job_id} is deleted.", {"id": job_id, "is_deleted": True})
