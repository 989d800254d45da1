"""`dmsae lineage`, `latent` and `latents`: what became of a job's latents, of one, and which there are."""

from itertools import islice
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dmsae.client.client import Client
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
)
from dmsae.commands.snippets import print_snippets
from dmsae.errors import NotFound

Most = Annotated[int, typer.Option("--most", min=1, help="Stop after so many.")]


def show_lineage(
    job_id: JobId, as_json: AsJson = False, url: Url = None, key: Key = None, data: Data = DEFAULT_DATA
) -> None:
    """Show every latent that a job's cores held: where it was learned, and which cycles selected it."""
    with connect(url, key, data) as client:
        found = client.latents.of_job(job_id)
        if as_json:
            print_lines(found)
            return
        table = Table(id_column("latent"), "selected in cycles", "times", "dropped", "last share")
        for latent in found:
            cycles = ", ".join(str(place["cycle_index"]) for place in latent["path"])
            told = (cycles, latent["times_selected"], latent["dropped_at"], latent["last_share"])
            table.add_row(latent["latent_id"], *map(_cell, told))
        Console().print(table)


def show_latent(
    latent_id: Annotated[str, typer.Argument(help="Id of the latent: JOB.CYCLE.INDEX.")],
    core: Annotated[
        str | None, typer.Option("--core", help="Texts as this core's cycle saw them; else the latest's.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Tell one latent's whole story: selections, descendants, matches, and texts at which it fires."""
    with connect(url, key, data) as client:
        story = client.latents.get(latent_id)
        snippets, why_none = _snippets_of(client, latent_id, core)
    if as_json:
        print_lines([{**story, "snippets": snippets}])
        return
    console = Console()
    console.print(f"{latent_id}: learned in cycle {story['origin_cycle']} of {story['origin_job_id']}")
    console.print(_path_table([story["own"], *story["descendants"]]))
    if story["matches"]:
        table = Table(id_column("matched"), "decoder cosine", "firing correlation", "by chance")
        for match in story["matches"]:
            told = (match["decoder_cosine"], match["firing_correlation"], match["best_cosine_random"])
            table.add_row(match["latent_id"], *map(_cell, told))
        console.print(table)
    if snippets is None:
        console.print(why_none, highlight=False, markup=False)
    else:
        print_snippets(console, snippets)


def list_latents(
    job: Annotated[str | None, typer.Option("--job", help="Held by a core of this job.")] = None,
    origin_job: Annotated[str | None, typer.Option("--origin-job", help="Learned by this job.")] = None,
    origin_cycle: Annotated[int | None, typer.Option("--origin-cycle", min=0)] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="learned, random_directions, ...")] = None,
    min_times: Annotated[int | None, typer.Option("--min-times-selected", min=0)] = None,
    min_last_share: Annotated[float | None, typer.Option("--min-last-share")] = None,
    min_max_share: Annotated[float | None, typer.Option("--min-max-share")] = None,
    alive: Annotated[bool | None, typer.Option("--alive/--dropped", help="Still in its core.")] = None,
    order: Annotated[
        str, typer.Option("--order", help="newest, oldest, times_selected, last_share or max_share.")
    ] = "newest",
    most: Most = 50,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """List latents of the whole lab."""
    filters = {
        "job_id": job,
        "origin_job_id": origin_job,
        "origin_cycle": origin_cycle,
        "origin_kind": kind,
        "min_times_selected": min_times,
        "min_last_share": min_last_share,
        "min_max_share": min_max_share,
        "is_alive": alive,
        "order": order,
    }
    with connect(url, key, data) as client:
        found = islice(client.latents.find(**filters), most)
        if as_json:
            print_lines(found)
            return
        names = ("times_selected", "last_cycle", "dropped_at", "last_share", "max_share")
        table = Table(id_column("latent"), "kind", *(name.replace("_", " ") for name in names))
        for latent in found:
            table.add_row(
                latent["latent_id"], latent["origin_kind"], *(_cell(latent[name]) for name in names)
            )
        Console().print(table)


def _snippets_of(client: Client, latent_id: str, core: str | None) -> tuple[dict[str, Any] | None, str]:
    """Give the texts at which a latent fires, or why there are none; of a core that is named they must be."""
    try:
        return client.latents.snippets(latent_id, core_id=core), ""
    except NotFound as absent:
        if core is not None:
            raise
        return None, absent.message


def _path_table(paths: list[dict[str, Any]]) -> Table:
    table = Table(id_column("job"), "owner", "cycle", "rank", "score", "share", "cosine", "what")
    measured = ("cycle_index", "rank", "score", "share")
    for path in paths:
        given = [] if path["given"] is None else [(path["given"], f"given ({path['given']['core_kind']})")]
        selected = [(place, place["published_as"] or "selected") for place in path["selections"]]
        dropped = [(drop, "dropped") for drop in path["drops"]]
        for place, what in given + selected + dropped:
            told = [*(place[name] for name in measured), place.get("decoder_cosine")]
            table.add_row(path["job_id"], path["owner"], *map(_cell, told), what)
    return table


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
