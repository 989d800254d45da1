"""`dmsae watch`: a job's events as they happen, and how far it is, over HTTP."""

from typing import Annotated, Any

import typer

from dmsae.commands.options import DEFAULT_DATA, Data, JobId, Key, Url, api_url

EXIT_STATUSES = {"succeeded": 0, "failed": 2, "cancelled": 3}
"""By the state in which the job ended; 1 is any other failure."""


def watch_job(
    job_id: JobId,
    after: Annotated[int, typer.Option("--after", min=0, help="Begin behind this event.")] = 0,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Follow a job until it has ended: status 0 if it succeeded, 2 if it failed, 3 if it was cancelled."""
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from dmsae.client.client import Client

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cycles"))
    with Client(api_url(url, data), key) as client, Progress(*columns) as bars:
        bar = bars.add_task(job_id, total=None)
        for event in client.jobs.watch(job_id, after=after):
            bars.print(escape(f"{event['created_at'][:19]}  {event['message']}"), highlight=False)
            bars.update(bar, **_standing(client.jobs.get(job_id)))
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
