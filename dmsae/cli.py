"""The command line. Only what a command needs is imported, when it runs: the base install knows `--help`."""

import errno
import json
import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dmsae.commands import jobs, keys, latents, owners, queue, watching
from dmsae.commands.options import DEFAULT_DATA, Data, Key, Url, api_url, database_url, in_database
from dmsae.errors import Conflict, DmsaeError, InvalidConfig, NotFound

app = typer.Typer(
    help="Train Distilled Matryoshka Sparse Autoencoders, and ask of each latent which cycle it came from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(keys.keys_app, name="keys")
app.add_typer(owners.owners_app, name="owners")
app.add_typer(jobs.job_app, name="job")
app.add_typer(queue.queue_app, name="queue")
app.command("lineage")(latents.show_lineage)
app.command("latent")(latents.show_latent)
app.command("latents")(latents.list_latents)
app.command("watch")(watching.watch_job)
app.command("retry")(jobs.retry_job)
app.command("clone")(jobs.clone_job)

Port = Annotated[
    int | None, typer.Option("--port", min=1, max=65535, help="Port of the API; default 8000 or a free one.")
]
Workers = Annotated[int, typer.Option("--workers", min=1, max=64, help="Workers: cpu:0, cpu:1, ...")]


def main() -> None:
    """Run the command line; every error that we know is one sentence on stderr and status 1."""
    try:
        app()
    except InvalidConfig as error:
        _fail("\n".join(map(str, error.problems)))
    except DmsaeError as error:
        _fail(error.message)
    except ModuleNotFoundError as error:
        _fail(f"This command needs the package {error.name!r}: pip install 'dmsae[local]'")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        _fail(f"{error.filename or 'The disk'}: {error.strerror}. Choose another data folder with --data.")


@app.command()
def up(
    data: Data = DEFAULT_DATA,
    port: Port = None,
    workers: Workers = 1,
    detach: Annotated[bool, typer.Option("--detach", help="Leave it running in the background.")] = False,
) -> None:
    """Start PostgreSQL, Valkey, SeaweedFS, API, worker and sweeper on this machine."""
    from dmsae.local import daemon, paths, state

    try:
        if detach:
            folder = paths.open_data_folder(data)
            url, _ = daemon.start(folder, port=port, n_workers=workers, is_kept=True)
            _ready(url, folder.root)
            typer.echo("It runs in the background; `dmsae down` stops it.")
        else:
            daemon.serve(
                data, port=port, n_workers=workers, announce=lambda stack: _ready(stack.url, data.absolute())
            )
    except state.AlreadyRunning as error:
        typer.echo(error.message)


@app.command()
def down(data: Data = DEFAULT_DATA) -> None:
    """Stop the local stack in order."""
    from dmsae.local import daemon

    stopped = daemon.stop(_existing(data))
    typer.echo("Stopped." if stopped else f"Nothing runs on {data.absolute()}.")


@app.command()
def status(data: Data = DEFAULT_DATA) -> None:
    """Say what of the local stack runs; status 1 if nothing does."""
    from dmsae.local import daemon

    found = daemon.describe(_existing(data))
    for name, what in found:
        typer.echo(f"{name:<14} {what}")
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
    data: Data = DEFAULT_DATA,
) -> None:
    """Serve one device, with settings from `DMSAE_*` or, for what they leave out, from the local stack."""
    from dmsae.local import daemon, paths
    from dmsae.service import workers

    workers.parse_device(device or "cpu:0")
    if drain:
        host = socket.gethostname()
        drained = in_database(data, lambda session: workers.drain_workers(session, host, device=device))
        typer.echo(f"Told to hand back and end: {', '.join(drained) or 'none'}.")
        return
    env = {**daemon.stack_environment(data), "PYTHONPATH": str(paths.find_checkout())}
    limit = [] if max_runtime is None else ["--max-runtime", max_runtime]
    command = [sys.executable, "-m", "worker", "--device", device or "cpu:0", *limit]
    os.execve(sys.executable, command, env)  # noqa: S606 - our own worker, no shell is meant


@app.command()
def migrate(data: Data = DEFAULT_DATA) -> None:
    """Bring the database up to this code's schema."""
    from dmsae.service import migrating

    migrating.migrate(database_url(data))
    typer.echo("The database is at the newest revision.")


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="Folder to make; it must not exist yet.")],
    data: Data = DEFAULT_DATA,
) -> None:
    """Copy database and objects into a new folder, also while the stack works."""
    from dmsae.local.backup import back_up
    from dmsae.local.stores import open_stores

    if folder.absolute().is_relative_to(data.absolute()):
        raise Conflict(f"{folder} lies in the data folder {data}: choose a place outside it.")
    with open_stores(data, is_alone=False) as settings:
        made = back_up(folder, settings)
    typer.echo(f"Backed up {_contents(made)} to {folder.absolute()}.")
    for key in made.missing_objects:
        typer.echo(f"Deleted with its job meanwhile, so not in the backup: {key}")


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="A folder that `dmsae backup` made.")],
    data: Data = DEFAULT_DATA,
) -> None:
    """Put a backup into an empty, stopped stack, or into an empty database and a bucket of `DMSAE_*`."""
    from dmsae.local.restore import restore as restore_backup
    from dmsae.local.stores import open_stores

    with open_stores(data, is_alone=True) as settings:
        made = restore_backup(folder, settings)
    typer.echo(f"Restored {_contents(made)}, as of {made.created_at}. What ran then is queued again.")


@app.command("make-bucket")
def make_bucket() -> None:
    """Make the object store's bucket unless it is there, with settings from `DMSAE_*`."""
    from dmsae.service.objects import ObjectStore
    from dmsae.service.settings import load_settings

    settings = load_settings()
    store = ObjectStore(settings)
    try:
        store.ensure_bucket()
    finally:
        store.close()
    typer.echo(f"The bucket {settings.s3_bucket!r} is there.")


@app.command()
def submit(
    settings: Annotated[str, typer.Argument(help="Name of a preset, or a JSON file of settings.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would be.")] = False,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Submit a distillation."""
    from dmsae.client.client import Client

    is_file = settings.endswith(".json") or Path(settings).is_file()
    body: dict[str, Any] = json.loads(Path(settings).read_text()) if is_file else {"preset": settings}
    with Client(api_url(url, data), key) as client:
        answer = client.distillations.create(body, is_dry_run=dry_run)
    typer.echo(json.dumps(answer, indent=2) if dry_run else answer["id"])


@app.command()
def upload(
    file: Annotated[
        Path, typer.Argument(help="A .txt, .jsonl or .parquet, or one of these with .gz or .zst.")
    ],
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Put a file of text into the store, and print the key by which a job names it."""
    from dmsae.client.client import Client

    if not file.is_file():
        raise NotFound(f"There is no file {str(file)!r}.")
    with Client(api_url(url, data), key) as client:
        typer.echo(client.uploads.create(file)["key"])


def _contents(made: Any) -> str:
    n_jobs = made.n_rows.get("jobs", 0)
    return f"{n_jobs} jobs and {made.n_objects} objects ({made.object_bytes / 1e6:.1f} MB)"


def _existing(data: Path) -> Any:
    from dmsae.local.paths import DataFolder

    if not data.is_dir():
        raise NotFound(f"There is no data folder {data.absolute()}.")
    return DataFolder(data.absolute())


def _ready(url: str, root: Path) -> None:
    typer.echo(f"DMSAE is ready at {url} (data in {root}, logs in {root / 'logs'}).")


def _fail(message: str) -> None:
    typer.echo(f"Error: {message}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
