"""`dmsae pull` and `dmsae export`: bring a job's files here, and make them another library's."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dmsae.commands.options import DEFAULT_DATA, AsJson, Data, JobId, Key, Url, connect, tell

if TYPE_CHECKING:
    from dmsae.client.pulling import Pulled

Cycle = Annotated[
    int | None, typer.Option("--cycle", help="One cycle only; -1: the last that finished. Default: all.")
]


def pull_job(
    job_id: JobId,
    folder: Annotated[
        Path | None, typer.Argument(help="Where to; default: a folder named as the job.")
    ] = None,
    cycle: Cycle = None,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Fetch a job's files into FOLDER/cycle_N/; each `sae` folder in it opens in SAELens.

    Every file is checked against its sha256. Run it again to go on where it broke off; what is whole stays.
    """
    place = Path(job_id) if folder is None else folder
    pulled = _pull(job_id, place, cycle=cycle, as_json=as_json, client=connect(url, key, data))
    n_new = sum(file.is_new for file in pulled.files)
    text = f"{n_new} files fetched, {len(pulled.files) - n_new} were whole: {place.absolute()}"
    tell(as_json, "\n".join([text, *(f"SAE: {found}" for found in pulled.sae_folders)]), _facts(pulled))


def export_job(
    job_id: JobId,
    folder: Annotated[Path, typer.Argument(help="Where to: a folder that is absent or empty.")],
    to: Annotated[Literal["dictionary-learning"], typer.Option("--to", help="Whose format.")],
    cycle: Annotated[int, typer.Option("--cycle", help="Of this cycle; -1: the last that finished.")] = -1,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Write the SAE of a cycle for another library (needs torch); SAELens opens what `dmsae pull` gives."""
    from dmsae.exports import export_dictionary_learning

    with connect(url, key, data) as client:
        sae, facts = client.distillations.load_sae(job_id, cycle=cycle)
    export_dictionary_learning(sae, folder, rms=facts["rms"], facts=facts)
    tell(as_json, f"{folder.absolute()}", {"folder": str(folder.absolute()), "to": to})


def _pull(job_id: str, folder: Path, *, cycle: int | None, as_json: bool, client: Any) -> "Pulled":
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    is_quiet = as_json or not console.is_terminal
    with client, Progress(*columns, console=console, disable=is_quiet, transient=True) as bars:
        bar = bars.add_task(job_id, total=None)

        def show(name: str, n_bytes: int, total: int) -> None:
            bars.update(bar, description=name, completed=n_bytes, total=total)

        pulled: Pulled = client.jobs.pull(job_id, folder, cycle=cycle, tell=show)
    return pulled


def _facts(pulled: "Pulled") -> dict[str, Any]:
    files = [
        {"path": str(file.path), "size_bytes": file.size_bytes, "sha256": file.sha256, "is_new": file.is_new}
        for file in pulled.files
    ]
    saes = [str(folder) for folder in pulled.sae_folders]
    return {"folder": str(pulled.folder), "cycles": list(pulled.cycles), "sae_folders": saes, "files": files}
