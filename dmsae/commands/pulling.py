"""`dmsae pull` and `dmsae export`: bring a job's files here, and make them another library's."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dmsae.commands.options import DEFAULT_DATA, AsJson, Data, JobId, Key, Url, connect, tell
from dmsae.errors import BadRequest

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
    to: Annotated[Literal["dictionary-learning", "neuronpedia"], typer.Option("--to", help="Whose format.")],
    cycle: Annotated[int, typer.Option("--cycle", help="Of this cycle; -1: the last that finished.")] = -1,
    model_id: Annotated[
        str | None,
        typer.Option("--model-id", help="What Neuronpedia calls the model; default: its hub name."),
    ] = None,
    source_set: Annotated[
        str | None,
        typer.Option("--source-set", help="Name of the set there; default: of hook, job and cycle."),
    ] = None,
    creator_id: Annotated[
        str | None, typer.Option("--creator-id", help="Your id there; default: that of its own exports.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Write a cycle for another library: its SAE for dictionary_learning, its core's latents for Neuronpedia.

    SAELens opens what `dmsae pull` gives. The former needs torch.
    """
    names = {"model_id": model_id, "source_set": source_set, "creator_id": creator_id}
    given = {name: value for name, value in names.items() if value is not None}
    if to != "neuronpedia" and given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise BadRequest(f"export: {options}: is of --to neuronpedia alone.")
    with connect(url, key, data) as client:
        if to == "neuronpedia":
            told = _export_neuronpedia(client, job_id, folder, cycle=cycle, names=given)
        else:
            told = _export_dictionary_learning(client, job_id, folder, cycle=cycle)
    text = ", ".join(f"{name} = {value}" for name, value in told.items())
    tell(
        as_json, f"{folder.absolute()} {text}".rstrip(), {"folder": str(folder.absolute()), "to": to, **told}
    )


def _export_dictionary_learning(client: Any, job_id: str, folder: Path, *, cycle: int) -> dict[str, Any]:
    from dmsae.exports import export_dictionary_learning

    sae, facts = client.distillations.load_sae(job_id, cycle=cycle)
    export_dictionary_learning(sae, folder, rms=facts["rms"], facts=facts)
    return {}


def _export_neuronpedia(
    client: Any, job_id: str, folder: Path, *, cycle: int, names: dict[str, str]
) -> dict[str, Any]:
    from dmsae.neuronpedia import Names, export_neuronpedia

    with tempfile.TemporaryDirectory(prefix="dmsae-export-") as given:
        pulled = client.jobs.pull(job_id, Path(given), cycle=cycle)
        (index,) = pulled.cycles
        exported = export_neuronpedia(Path(given) / f"cycle_{index}", folder, names=Names(**names))
    return {
        "source": str(exported.source_folder.relative_to(folder)),
        "n_latents": exported.n_latents,
        "n_texts": exported.n_texts,
        "n_left_out": exported.n_left_out,
    }


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
