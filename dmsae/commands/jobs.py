"""`dmsae job`: look at, cancel and delete jobs, over HTTP."""

import json

import typer

from dmsae.commands.options import DEFAULT_DATA, Data, JobId, Key, Url, api_url

job_app = typer.Typer(help="Jobs, over HTTP.", no_args_is_help=True)


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


@job_app.command("delete")
def delete_job(job_id: JobId, url: Url = None, key: Key = None, data: Data = DEFAULT_DATA) -> None:
    """Delete a job that has ended, with all that it stored."""
    from dmsae.client.client import Client

    with Client(api_url(url, data), key) as client:
        client.jobs.delete(job_id)
    typer.echo(f"{job_id} is deleted.")
