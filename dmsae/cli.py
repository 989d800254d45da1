"""The command line. Only what a command needs is imported, when it runs: the base install knows `--help`."""

import errno
import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dmsae.commands import (
    configuring,
    figures,
    jobs,
    keys,
    latents,
    owners,
    probing,
    pulling,
    queue,
    submitting,
    watching,
)
from dmsae.commands.options import (
    DEFAULT_DATA,
    NAMED_PROFILE,
    AsJson,
    Data,
    Key,
    Url,
    connect,
    database_url,
    in_database,
    tell,
)
from dmsae.errors import Conflict, DmsaeError, InvalidConfig, NotFound, Unavailable
from dmsae.version import VERSION

HELP = """Train Distilled Matryoshka Sparse Autoencoders, and ask of each latent which cycle it came from.

\b
  dmsae up --detach                     a whole service on this machine
  dmsae submit settings.json            prints the job's id
  dmsae watch JOB                       follows it to its end
  dmsae pull JOB --cycle -1 gemma-l12   then SAE.load_from_disk("gemma-l12/cycle_2/sae") in SAELens
  dmsae lineage JOB --json              every latent of its cores, one a line
  dmsae figure origins JOB              the cycles that its latents come from, as an SVG
  dmsae --profile lab config set url https://dmsae.lab.example

Exit status: 0 done; 1 refused or failed; 2 the command line is wrong; 3 the service does not answer; of
`watch` and `probe` also 4 the job failed, 5 it was cancelled.
"""
NOT_REACHED = 3

app = typer.Typer(help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(configuring.config_app, name="config")
app.add_typer(keys.keys_app, name="keys")
app.add_typer(owners.owners_app, name="owners")
app.add_typer(jobs.job_app, name="job")
app.add_typer(probing.probe_app, name="probe")
app.add_typer(queue.queue_app, name="queue")
app.add_typer(figures.figure_app, name="figure")
app.command("lineage")(latents.show_lineage)
app.command("latent")(latents.show_latent)
app.command("latents")(latents.list_latents)
app.command("submit")(submitting.submit_job)
app.command("upload")(submitting.upload_file)
app.command("watch")(watching.watch_job)
app.command("pull")(pulling.pull_job)
app.command("export")(pulling.export_job)
app.command("cancel")(jobs.cancel_job)
app.command("retry")(jobs.retry_job)
app.command("clone")(jobs.clone_job)

Port = Annotated[
    int | None, typer.Option("--port", min=1, max=65535, help="Port of the API; default 8000 or a free one.")
]
Workers = Annotated[int, typer.Option("--workers", min=1, max=64, help="Workers: cpu:0, cpu:1, ...")]


def main() -> None:
    """Run the command line; every error that we know is one sentence on stderr and a status of `HELP`."""
    try:
        app()
    except InvalidConfig as error:
        _fail("\n".join(map(str, error.problems)))
    except Unavailable as error:
        _fail(error.message, status=NOT_REACHED)
    except DmsaeError as error:
        _fail(error.message)
    except ModuleNotFoundError as error:
        _fail(f"This command needs the package {error.name!r}: pip install 'dmsae[local]'")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        _fail(f"{error.filename or 'The disk'}: {error.strerror}. Choose another data folder with --data.")


@app.callback()
def start(
    profile: Annotated[
        str | None,
        typer.Option("--profile", envvar="DMSAE_PROFILE", help="Which of one's APIs: see `dmsae config`."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Say what all commands share; the help is the application's."""
    NAMED_PROFILE.set(profile)
    if version:
        typer.echo(VERSION)
        raise typer.Exit


@app.command()
def up(
    data: Data = DEFAULT_DATA,
    port: Port = None,
    workers: Workers = 1,
    detach: Annotated[bool, typer.Option("--detach", help="Leave it running in the background.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start PostgreSQL, Valkey, SeaweedFS, API, worker and sweeper on this machine."""
    from dmsae.local import daemon, paths, state

    try:
        if detach:
            folder = paths.open_data_folder(data)
            url, _ = daemon.start(folder, port=port, n_workers=workers, is_kept=True)
            _ready(as_json, url, folder.root)
            if not as_json:
                typer.echo("It runs in the background; `dmsae down` stops it.")
        else:
            daemon.serve(
                data,
                port=port,
                n_workers=workers,
                announce=lambda stack: _ready(as_json, stack.url, data.absolute()),
            )
    except state.AlreadyRunning as error:
        tell(as_json, error.message, {"data": str(data.absolute()), "was_running": True})


@app.command()
def down(as_json: AsJson = False, data: Data = DEFAULT_DATA) -> None:
    """Stop the local stack in order."""
    from dmsae.local import daemon

    stopped = daemon.stop(_existing(data))
    text = "Stopped." if stopped else f"Nothing runs on {data.absolute()}."
    tell(as_json, text, {"is_stopped": bool(stopped)})


@app.command()
def status(
    job_id: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Show this job instead.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Show a job, or without one what of the local stack runs; status 1 if nothing does."""
    if job_id is not None:
        with connect(url, key, data) as client:
            jobs.show(client.jobs.get(job_id), as_json=as_json)
        return
    from dmsae.local import daemon

    found = list(daemon.describe(_existing(data)))
    if found or as_json:
        tell(as_json, "\n".join(f"{name:<14} {what}" for name, what in found), dict(found))
    if not found:
        _fail(f"Nothing runs on {data.absolute()}.")


@app.command()
def demo(
    data: Data = DEFAULT_DATA,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack running afterwards.")] = False,
) -> None:
    """Run a distillation of three cycles on SmolLM2-135M, for real, and show what came out."""
    from dmsae.local.demo import run_demo

    raise typer.Exit(run_demo(data, is_kept=keep))


@app.command()
def worker(
    device: Annotated[str | None, typer.Option("--device", help="cpu:0 (the default), cuda:1, ...")] = None,
    max_runtime: Annotated[
        str | None,
        typer.Option("--max-runtime", help="Hand the cycle back and end within this time: 110m, 2:00:00."),
    ] = None,
    drain: Annotated[
        bool,
        typer.Option("--drain", help="Start none: let this host's workers hand back and end (one --device)."),
    ] = False,
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Serve one device, with settings from `DMSAE_*` or, for what they leave out, from the local stack."""
    from dmsae.local import daemon, paths
    from dmsae.service import workers

    workers.parse_device(device or "cpu:0")
    if drain:
        host = socket.gethostname()
        drained = in_database(data, lambda session: workers.drain_workers(session, host, device=device))
        text = f"Told to hand back and end: {', '.join(drained) or 'none'}."
        tell(as_json, text, {"drained": list(drained)})
        return
    env = {**daemon.stack_environment(data), "PYTHONPATH": str(paths.find_checkout())}
    limit = [] if max_runtime is None else ["--max-runtime", max_runtime]
    command = [sys.executable, "-m", "worker", "--device", device or "cpu:0", *limit]
    os.execve(sys.executable, command, env)  # noqa: S606 - our own worker, no shell is meant


@app.command()
def migrate(as_json: AsJson = False, data: Data = DEFAULT_DATA) -> None:
    """Bring the database up to this code's schema."""
    from dmsae.service import migrating

    migrating.migrate(database_url(data))
    tell(as_json, "The database is at the newest revision.", {"is_newest": True})


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="Folder to make; it must not exist yet.")],
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Copy database and objects into a new folder, also while the stack works."""
    from dmsae.local.backup import back_up
    from dmsae.local.stores import open_stores

    if folder.absolute().is_relative_to(data.absolute()):
        raise Conflict(f"{folder} lies in the data folder {data}: choose a place outside it.")
    with open_stores(data, is_alone=False) as settings:
        made = back_up(folder, settings)
    missing = "".join(
        f"\nDeleted with its job meanwhile, so not in the backup: {key}" for key in made.missing_objects
    )
    facts = {**_counted(made), "missing_objects": list(made.missing_objects)}
    tell(as_json, f"Backed up {_contents(made)} to {folder.absolute()}.{missing}", facts)


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="A folder that `dmsae backup` made.")],
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Put a backup into an empty, stopped stack, or into an empty database and a bucket of `DMSAE_*`."""
    from dmsae.local.restore import restore as restore_backup
    from dmsae.local.stores import open_stores

    with open_stores(data, is_alone=True) as settings:
        made = restore_backup(folder, settings)
    text = f"Restored {_contents(made)}, as of {made.created_at}. What ran then is queued again."
    tell(as_json, text, {**_counted(made), "created_at": str(made.created_at)})


@app.command("make-bucket")
def make_bucket(as_json: AsJson = False) -> None:
    """Make the object store's bucket unless it is there, with settings from `DMSAE_*`."""
    from dmsae.service.objects import ObjectStore
    from dmsae.service.settings import load_settings

    settings = load_settings()
    store = ObjectStore(settings)
    try:
        store.ensure_bucket()
    finally:
        store.close()
    tell(as_json, f"The bucket {settings.s3_bucket!r} is there.", {"bucket": settings.s3_bucket})


def _contents(made: Any) -> str:
    n_jobs = made.n_rows.get("jobs", 0)
    return f"{n_jobs} jobs and {made.n_objects} objects ({made.object_bytes / 1e6:.1f} MB)"


def _counted(made: Any) -> dict[str, Any]:
    return {"n_rows": dict(made.n_rows), "n_objects": made.n_objects, "object_bytes": made.object_bytes}


def _existing(data: Path) -> Any:
    from dmsae.local.paths import DataFolder

    if not data.is_dir():
        raise NotFound(f"There is no data folder {data.absolute()}.")
    return DataFolder(data.absolute())


def _ready(as_json: bool, url: str, root: Path) -> None:
    text = f"DMSAE is ready at {url} (data in {root}, logs in {root / 'logs'})."
    tell(as_json, text, {"url": url, "data": str(root), "logs": str(root / "logs")})


def _fail(message: str, *, status: int = 1) -> None:
    typer.echo(f"Error: {message}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
