"""`dmsae watch`: a job's events as they happen, and how far it is, over HTTP."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmsae.commands.options import DEFAULT_DATA, AsJson, Data, JobId, Key, Url, connect

if TYPE_CHECKING:
    from dmsae.client.client import Client

EXIT_STATUSES = {"succeeded": 0, "failed": 4, "cancelled": 5}
"""By the state in which the job ended; 1 to 3 mean that this could not be seen."""


def watch_job(
    job_id: JobId,
    after: Annotated[int, typer.Option("--after", min=0, help="Begin behind this event.")] = 0,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Follow a job until it has ended: status 0 if it succeeded, 4 if it failed, 5 if it was cancelled."""
    if as_json:
        _watch_as_json(job_id, connect(url, key, data), after)
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cycles"))
    with connect(url, key, data) as client, Progress(*columns) as bars:
        bar = bars.add_task(job_id, total=None)
        for event in client.jobs.watch(job_id, after=after):
            bars.print(escape(f"{event['created_at'][:19]}  {event['message']}"), highlight=False)
            bars.update(bar, **_standing(client.jobs.get(job_id)))
        state = client.jobs.get(job_id)["state"]
    raise typer.Exit(EXIT_STATUSES.get(state, 1))


def _watch_as_json(job_id: str, connected: "Client", after: int) -> None:
    with connected as client:
        for event in client.jobs.watch(job_id, after=after):
            typer.echo(json.dumps(event))
        state = client.jobs.get(job_id)["state"]
    raise typer.Exit(EXIT_STATUSES.get(state, 1))


def _standing(job: dict[str, Any]) -> dict[str, Any]:
    progress = job["progress"]
    phase = f", {progress['phase']}" if progress["phase"] else ""
    return {
        "description": f"{job['state']}{phase}",
        "total": progress["n_cycles"],
        "completed": progress["n_cycles_done"],
    }
