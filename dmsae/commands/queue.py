"""`dmsae queue`: pause it, hold jobs, change priorities; straight in the database, for those who run it."""

from typing import Annotated

import typer

from dmsae.commands.options import DEFAULT_DATA, Data, JobId, in_database

queue_app = typer.Typer(help="The shared queue, for those who run it.", no_args_is_help=True)


@queue_app.command("pause")
def pause(
    reason: Annotated[str | None, typer.Option("--reason", help="What people are told who wait.")] = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Let nothing be claimed until it is resumed; what runs goes on."""
    from dmsae.service.queue_control import pause_queue

    in_database(data, lambda session: pause_queue(session, reason=reason))
    typer.echo("The queue is paused; what runs goes on.")


@queue_app.command("resume")
def resume(data: Data = DEFAULT_DATA) -> None:
    """Let cycles be claimed again."""
    from dmsae.service.queue_control import resume_queue

    was_paused = in_database(data, resume_queue)
    typer.echo("The queue goes on." if was_paused else "The queue was not paused.")


@queue_app.command("hold")
def hold(job_id: JobId, data: Data = DEFAULT_DATA) -> None:
    """Keep a job from being claimed; a cycle that runs goes on."""
    from dmsae.service.queue_control import hold_job

    in_database(data, lambda session: hold_job(session, job_id))
    typer.echo(f"{job_id} is held.")


@queue_app.command("release")
def release(job_id: JobId, data: Data = DEFAULT_DATA) -> None:
    """Let a held job be claimed again."""
    from dmsae.service.queue_control import release_job

    in_database(data, lambda session: release_job(session, job_id))
    typer.echo(f"{job_id} may run again.")


@queue_app.command("priority")
def priority(
    job_id: JobId,
    level: Annotated[str, typer.Argument(help="low, normal or high.")],
    data: Data = DEFAULT_DATA,
) -> None:
    """Give a job another priority, whoever owns it."""
    from dmsae.service.queue_control import change_priority

    in_database(data, lambda session: change_priority(session, job_id, level))
    typer.echo(f"{job_id} has priority {level}.")
