"""`dmsae queue`: look at it over HTTP; pause it, hold jobs, change priorities, there or in the database."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dmsae.commands.options import (
    DEFAULT_DATA,
    Api,
    AsJson,
    Data,
    JobId,
    Key,
    Url,
    connect,
    id_column,
    in_database,
    is_over_http,
    over_http,
    tell,
)

queue_app = typer.Typer(
    help="The shared queue: changed in the database, or over HTTP with --url or --profile.",
    no_args_is_help=True,
)


@queue_app.command("show")
def show_queue(as_json: AsJson = False, url: Url = None, key: Key = None, data: Data = DEFAULT_DATA) -> None:
    """Show what waits, in the order of claims, and why; and what each worker runs."""
    with connect(url, key, data) as client:
        queue = client.request("GET", "/queue")
    if as_json:
        typer.echo(json.dumps(queue))
        return
    console = Console()
    if queue["is_paused"]:
        console.print(f"Paused: {queue['pause_reason'] or 'no reason was given'}")
    workers = Table("worker", "device", "last seen", "runs")
    for worker in queue["workers"]:
        runs = worker["running"]
        what = "" if runs is None else f"{runs['job_id']} cycle {runs['cycle_index']}, {runs['phase']}"
        workers.add_row(worker["id"], worker["device"], worker["last_seen_at"][:19], what)
    console.print(workers)
    waiting = Table("class", "place", id_column("job"), "cycle", "owner", "priority", "why")
    for line in queue["lines"]:
        for each in line["waiting"]:
            told = (each["position"], each["job_id"], each["cycle_index"], each["owner"], each["priority"])
            waiting.add_row(line["resource_class"], *map(str, told), each["why"])
    console.print(waiting)


@queue_app.command("pause")
def pause(
    reason: Annotated[str | None, typer.Option("--reason", help="What people are told who wait.")] = None,
    url: Api = None,
    key: Key = None,
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Let nothing be claimed until it is resumed; what runs goes on."""
    if is_over_http(url):
        over_http(url, key, "PATCH", "/admin/queue", body={"is_paused": True, "reason": reason})
    else:
        from dmsae.service.queue_control import pause_queue

        in_database(data, lambda session: pause_queue(session, reason=reason))
    tell(as_json, "The queue is paused; what runs goes on.", {"is_paused": True, "pause_reason": reason})


@queue_app.command("resume")
def resume(url: Api = None, key: Key = None, as_json: AsJson = False, data: Data = DEFAULT_DATA) -> None:
    """Let cycles be claimed again."""
    if is_over_http(url):
        was_paused = over_http(url, key, "GET", "/admin/queue")["is_paused"]
        over_http(url, key, "PATCH", "/admin/queue", body={"is_paused": False})
    else:
        from dmsae.service.queue_control import resume_queue

        was_paused = in_database(data, resume_queue)
    text = "The queue goes on." if was_paused else "The queue was not paused."
    tell(as_json, text, {"is_paused": False, "was_paused": was_paused})


@queue_app.command("hold")
def hold(
    job_id: JobId, url: Api = None, key: Key = None, as_json: AsJson = False, data: Data = DEFAULT_DATA
) -> None:
    """Keep a job from being claimed; a cycle that runs goes on."""
    if is_over_http(url):
        over_http(url, key, "PATCH", f"/admin/jobs/{job_id}", body={"held": True})
    else:
        from dmsae.service.queue_control import hold_job

        in_database(data, lambda session: hold_job(session, job_id))
    tell(as_json, f"{job_id} is held.", {"id": job_id, "held": True})


@queue_app.command("release")
def release(
    job_id: JobId, url: Api = None, key: Key = None, as_json: AsJson = False, data: Data = DEFAULT_DATA
) -> None:
    """Let a held job be claimed again."""
    if is_over_http(url):
        over_http(url, key, "PATCH", f"/admin/jobs/{job_id}", body={"held": False})
    else:
        from dmsae.service.queue_control import release_job

        in_database(data, lambda session: release_job(session, job_id))
    tell(as_json, f"{job_id} may run again.", {"id": job_id, "held": False})


@queue_app.command("priority")
def priority(
    job_id: JobId,
    level: Annotated[str, typer.Argument(help="low, normal or high.")],
    url: Api = None,
    key: Key = None,
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Give a job another priority, whoever owns it."""
    if is_over_http(url):
        over_http(url, key, "PATCH", f"/admin/jobs/{job_id}", body={"priority": level})
    else:
        from dmsae.service.queue_control import change_priority

        in_database(data, lambda session: change_priority(session, job_id, level))
    tell(as_json, f"{job_id} has priority {level}.", {"id": job_id, "priority": level})
