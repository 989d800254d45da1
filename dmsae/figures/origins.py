"""The origins: for each cycle a bar, stacked by the cycle that its core's latents come from."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dmsae.figures.canvas import set_title
from dmsae.figures.data import OriginsData
from dmsae.figures.legends import FOREIGN_HATCH, color_origins, explain_origins
from dmsae.figures.themes import Look, ink_on

LEAST_LABELLED = 0.045
"""Of the highest bar: what a part must measure to have its number written in it."""
MOST_LABELLED = 16
"""Bars beside each other in which numbers still fit."""


def size_of(data: OriginsData) -> tuple[float, float]:
    """Give width and height in inches."""
    return min(14.0, max(7.0, 2.6 + 0.5 * len(data.cycles))), 4.2


def paint_origins(figure: Figure, look: Look, data: OriginsData) -> None:
    """Stack the counts of each cycle, the oldest origin at the bottom."""
    set_title(figure, "Core latents by the cycle that they come from", data.subject)
    axes, job_id = figure.subplots(), data.subject.job_id
    colors = color_origins(look, data.origins, job_id)
    least = LEAST_LABELLED * max(map(sum, data.counts)) if len(data.cycles) <= MOST_LABELLED else None
    for place, (cycle, counts) in enumerate(zip(data.cycles, data.counts, strict=True)):
        of = dict(zip(data.origins, counts, strict=True))
        below = 0
        for origin in colors:
            bar = axes.bar(place, of[origin], bottom=below, width=0.78, color=[colors[origin]])[0]
            bar.set(edgecolor=look.ground, linewidth=0.6, visible=of[origin] > 0)
            bar.set(hatch=None if origin.job_id == job_id else FOREIGN_HATCH)
            bar.set_gid(f"bar-{cycle}-{origin.job_id}-{origin.cycle}")
            if least is not None and of[origin] >= least:
                _write(axes, place, below + of[origin] / 2, of[origin], ink=ink_on(colors[origin]))
            below += of[origin]
        if least is not None:
            axes.annotate(
                f"{below:,}", (place, below), (0, 2), textcoords="offset points", ha="center", fontsize=8
            )
    axes.set_xticks(range(len(data.cycles)), [str(cycle) for cycle in data.cycles])
    axes.set(xlabel="core after cycle", ylabel="latents", xlim=(-0.6, len(data.cycles) - 0.4))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.08)
    axes.grid(axis="y")
    explain_origins(figure, axes, look, colors, job_id=job_id)


def _write(axes: Axes, x: float, y: float, n: int, *, ink: str) -> None:
    axes.text(x, y, f"{n:,}", ha="center", va="center", fontsize=7.5, color=ink)
