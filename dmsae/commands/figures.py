"""`dmsae figure`: what a job found, and how several compare, as a file; the service draws it."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from dmsae.client.calls import unwritable
from dmsae.client.figures import Figure, Form, Over, Theme
from dmsae.commands.options import DEFAULT_DATA, AsJson, Data, JobId, Key, Url, connect, tell
from dmsae.errors import BadRequest

figure_app = typer.Typer(help="Draw what a job found, and how several compare.", no_args_is_help=True)

FIGURES: Mapping[Figure, str] = {
    "origins": "Draw each cycle's core by the cycle that its latents come from.",
    "flow": "Draw which latents each cycle kept, added and dropped.",
    "curves": "Draw loss, explained variance, L0 and dead latents by step, a line for each cycle.",
    "density": "Draw density against score of the last core.",
}
STDOUT = Path("-")

FormOf = Annotated[
    Form | None, typer.Option("--format", help="csv is the data. Default: as the output's name ends, or svg.")
]
ThemeOf = Annotated[Theme, typer.Option("--theme", help="Of the page or paper that it is for.")]
OutputOf = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="File to write; -: standard output. Default: one here."),
]


def _command_of(figure: Figure) -> Callable[..., None]:
    """Make the command for a figure of one job: they differ in nothing else."""

    def draw_figure(
        job_id: JobId,
        form: FormOf = None,
        theme: ThemeOf = "light",
        output: OutputOf = None,
        as_json: AsJson = False,
        url: Url = None,
        key: Key = None,
        data: Data = DEFAULT_DATA,
    ) -> None:
        wanted = _form_of(form, output)
        with connect(url, key, data) as client:
            drawn = client.figures.of_job(job_id, figure, form=wanted, theme=theme)
        _write(drawn, output or Path(f"{job_id}-{figure}.{wanted}"), as_json=as_json)

    return draw_figure


for _figure, _about in FIGURES.items():
    figure_app.command(_figure, help=_about)(_command_of(_figure))


@figure_app.command("compare")
def draw_comparison(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Jobs, or groups for all of theirs.")],
    over: Annotated[Over, typer.Option("--over", help="k: means over seeds. seed: each seed.")] = "k",
    form: FormOf = None,
    theme: ThemeOf = "light",
    output: OutputOf = None,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """Draw how jobs compare, beside SAEs as wide without a core; error bars are sample standard deviations.

    With csv or --json a control that is missing is named.
    """
    wanted = _form_of(form, output)
    with connect(url, key, data) as client:
        drawn = client.figures.compare(ids, over=over, form=wanted, theme=theme)
        found = client.figures.comparison(ids, over=over)
    missing = found["missing_controls"]
    _write(drawn, output or Path(f"compare.{wanted}"), as_json=as_json, missing_controls=missing)
    if not as_json:
        for gap in missing:
            typer.echo(f"{gap['arm']}: {gap['sentence']}", err=True)


def _form_of(form: Form | None, output: Path | None) -> Form:
    ending = "" if output is None else output.suffix.removeprefix(".").lower()
    if form is not None:
        return form
    return cast("Form", ending) if ending in get_args(Form) else "svg"


def _write(drawn: bytes, output: Path, *, as_json: bool, **facts: Any) -> None:
    """Write a file, or to standard output, and say so.

    Raises:
        BadRequest: standard output would hold both the figure and JSON.
        DmsaeError: the file cannot be written.
    """
    if output == STDOUT:
        if as_json:
            raise BadRequest("--json: standard output holds the figure; name a file.", param="json")
        sys.stdout.buffer.write(drawn)
        sys.stdout.buffer.flush()
        return
    try:
        output.write_bytes(drawn)
    except OSError as error:
        raise unwritable(output, error) from error
    tell(as_json, str(output.absolute()), {"path": str(output.absolute()), "size_bytes": len(drawn), **facts})
