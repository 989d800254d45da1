"""`dmsae probe`: ask something of a finished core by a short job, over HTTP."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dmsae.commands.options import DEFAULT_DATA, AsJson, Data, Key, Url, connect, id_column, tell
from dmsae.commands.watching import EXIT_STATUSES
from dmsae.errors import BadRequest

if TYPE_CHECKING:
    from dmsae.client.client import Client

SAE_FILES = ("cfg.json", "sae_weights.safetensors")
ARRAYS = ".npz"

probe_app = typer.Typer(help="Ask something of a finished core, over HTTP.", no_args_is_help=True)

Core = Annotated[
    str, typer.Argument(metavar="CORE", help="JOB, for its last core, JOB.CYCLE, or NAME@VERSION.")
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for what it finds, or print its id.")]
Top = Annotated[int, typer.Option("--top", min=1, max=50, help="Tokens to show.")]


@probe_app.command("logit-lens")
def show_lenses(
    core: Core,
    latent: Annotated[
        list[str] | None, typer.Option("--latent", help="Of the core; repeatable; none: all.")
    ] = None,
    top: Top = 10,
    wait: Wait = True,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Show which tokens each latent of a core promotes, and which it suppresses."""
    settings = {"kind": "logit_lens", "core": parse_core(core), "n_top": top}
    if latent:
        settings["latents"] = latent
    with connect(url, key, data) as client:
        _run(client, settings, is_waiting=wait, as_json=as_json)


@probe_app.command("match")
def show_matches(
    core: Core,
    other: Annotated[
        str | None, typer.Argument(metavar="[OTHER]", help="Another core, named in the same way.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Instead, an SAELens folder or .npz here, which is uploaded."),
    ] = None,
    worker_folder: Annotated[
        str | None, typer.Option("--worker-folder", help="Instead, one on the worker's disk.")
    ] = None,
    cosine: Annotated[float, typer.Option("--cosine", min=0, max=1, help="Least decoder cosine.")] = 0.7,
    tokens: Annotated[int | None, typer.Option("--tokens", min=2, help="To compare firing on.")] = None,
    wait: Wait = True,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Match a core's latents, one to one, with another core's or with those of anybody's SAE.

    That is a folder of SAELens, or a file of NumPy arrays as Gemma Scope publishes them.
    """
    named = [given for given in (other, folder, worker_folder) if given is not None]
    if len(named) != 1:
        raise BadRequest("match: name one of OTHER, --folder and --worker-folder.")
    settings = {"kind": "match", "core": parse_core(core), "decoder_cosine": cosine}
    if tokens is not None:
        settings["n_tokens"] = tokens
    with connect(url, key, data) as client:
        if other is not None:
            found = parse_core(other)
            settings["other"] = {"kind": "published" if "name" in found else "cycle", **found}
        elif folder is not None:
            files = [folder] if folder.suffix == ARRAYS else [folder / name for name in SAE_FILES]
            uploaded = [client.uploads.create(file) for file in files]
            settings["other"] = {"kind": "objects", "objects": [{"key": each["key"]} for each in uploaded]}
        else:
            settings["other"] = {"kind": "folder", "path": worker_folder}
        _run(client, settings, is_waiting=wait, as_json=as_json)


@probe_app.command("prompt")
def show_prompt(
    core: Core,
    prompt: Annotated[str, typer.Argument(help="The text.")],
    latent: Annotated[str | None, typer.Option("--latent", help="Of the core; none: the strongest.")] = None,
    ablate: Annotated[bool, typer.Option("--ablate", help="Also say it without the latent.")] = False,
    steer: Annotated[
        float | None,
        typer.Option("--steer", help="Also say it with so much of the latent, in the model's own units."),
    ] = None,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=0, max=100, help="To continue by.")] = 20,
    top: Top = 10,
    wait: Wait = True,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Show where latents fire in a text, and what the model says next: plain, and with one changed."""
    if ablate and steer is not None:
        raise BadRequest("prompt: --ablate and --steer are two changes: ask for one.")
    settings: dict[str, Any] = {"kind": "prompt", "core": parse_core(core), "prompt": prompt}
    settings |= {"n_new_tokens": new_tokens, "n_top": top}
    if latent is not None:
        settings["latent"] = latent
    if ablate or steer is not None:
        settings["change"] = {"kind": "ablate"} if ablate else {"kind": "steer", "strength": steer}
    with connect(url, key, data) as client:
        _run(client, settings, is_waiting=wait, as_json=as_json)


def parse_core(text: str) -> dict[str, Any]:
    """Make a core of `JOB`, `JOB.CYCLE` or the name of a published one, such as `lab/gemma-2-2b-l12@3`.

    Raises:
        BadRequest: the cycle is no number, or the name has no version.
    """
    if "/" in text:
        if "@" not in text:
            raise BadRequest(f"CORE {text!r}: name its version too, such as {text}@1.")
        return {"name": text}
    job, is_named, cycle = text.partition(".")
    if is_named and not (cycle.isascii() and cycle.isdigit()):
        raise BadRequest(f"CORE {text!r}: must be JOB or JOB.CYCLE, such as {job}.2.")
    return {"job": job, **({"cycle": int(cycle)} if is_named else {})}


def _run(client: "Client", settings: dict[str, Any], *, is_waiting: bool, as_json: bool) -> None:
    """Queue a probe, wait for it if that is wanted, and show it.

    Raises:
        typer.Exit: with the status of a job that failed or was cancelled.
    """
    probe = client.probes.create(settings)
    if not is_waiting:
        tell(as_json, probe["id"], probe)
        return
    probe = client.probes.wait(probe["id"])
    if as_json or probe["result"] is None:
        tell(as_json, f"{probe['id']} {probe['state']}: {probe['state_reason'] or ''}", probe)
    else:
        SHOWN[probe["result"]["kind"]](probe["result"], Console())
    if probe["state"] in EXIT_STATUSES:
        raise typer.Exit(EXIT_STATUSES[probe["state"]])


def _show_lenses(result: dict[str, Any], console: Console) -> None:
    table = Table(id_column("latent"), "promotes", "suppresses")
    for latent in result["latents"]:
        ends = (" ".join(repr(t["token"]) for t in latent[end]) for end in ("promoted", "suppressed"))
        table.add_row(latent["latent_id"], *map(escape, ends))
    console.print(table)


def _show_matches(result: dict[str, Any], console: Console) -> None:
    console.print(
        f"{result['n_matches']} of {result['n_latents']} latents match one of {result['n_latents_other']} by "
        f"decoder (at least {result['decoder_cosine']:g}). Mean largest cosine {result['best_cosine']:.3f}; "
        f"with random directions {result['best_cosine_random']:.3f}."
    )
    if result["firing_trouble"] is not None:
        console.print(escape(result["firing_trouble"]))
    table = Table(id_column("latent"), id_column("other"), "decoder cosine", "firing correlation")
    for match in result["matches"]:
        other = match["other_latent_id"] or str(match["other_index"])
        correlation = match["firing_correlation"]
        told = "" if correlation is None else f"{correlation:.3f}"
        table.add_row(match["latent_id"], other, f"{match['decoder_cosine']:.3f}", told)
    console.print(table)


def _show_prompt(result: dict[str, Any], console: Console) -> None:
    table = Table("token", *(latent["latent_id"] for latent in result["latents"]))
    for place, token in enumerate(result["tokens"]):
        acts = [latent["activations"][place] for latent in result["latents"]]
        shown = ("-" if act is None else f"{act:.3g}" if act else "" for act in acts)
        table.add_row(escape(repr(token["token"])), *shown)
    console.print(table)
    for title, said in (("plain", result["plain"]), ("changed", result["changed"])):
        if said is not None:
            likeliest = ", ".join(f"{t['token']!r} {t['probability']:.1%}" for t in said["next"])
            console.print(f"{title}: {escape(likeliest)}")
            console.print(f"  it goes on: {escape(repr(said['text']))}")
    if result["kl"] is not None:
        console.print(f"KL of the two at the next token: {result['kl']:.4g} nats")


SHOWN = {"logit_lens": _show_lenses, "match": _show_matches, "prompt": _show_prompt}
