"""The origins: for each cycle a bar, stacked by the cycle that its core's latents come from."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dmsae.figures.canvas import set_title
from dmsae.figures.data import OriginsData
from dmsae.figures.legends import FOREIGN_HATCH, color_origins, explain_origins
from dmsae.figures.themes import Color, Look, ink_on

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
    highest, is_labelled = max(map(sum, data.counts)), len(data.cycles) <= MOST_LABELLED
    tops = [0] * len(data.cycles)
    for origin, color in colors.items():
        column = data.origins.index(origin)
        heights = {place: counts[column] for place, counts in enumerate(data.counts) if counts[column]}
        below = [tops[place] for place in heights]
        bars = axes.bar(list(heights), list(heights.values()), bottom=below, width=0.78, color=[color])
        for bar, (place, n) in zip(bars, heights.items(), strict=True):
            bar.set(edgecolor=look.ground, linewidth=0.6 if is_labelled else 0.2)
            bar.set_hatch(None if origin.job_id == job_id else FOREIGN_HATCH)
            bar.set_gid(f"bar-{data.cycles[place]}-{origin.job_id}-{origin.cycle}")
            if is_labelled and n >= LEAST_LABELLED * highest:
                _write(axes, place, tops[place] + n / 2, n, color=color)
            tops[place] += n
    for place, n in enumerate(tops if is_labelled else ()):
        axes.annotate(f"{n:,}", (place, n), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xticks(range(len(data.cycles)), [str(cycle) for cycle in data.cycles])
    axes.set(xlabel="core after cycle", ylabel="latents", xlim=(-0.6, len(data.cycles) - 0.4))
    axes.set_ylim(0, 1.1 * highest)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    explain_origins(figure, axes, look, colors, job_id=job_id)


def _write(axes: Axes, x: float, y: float, n: int, *, color: Color) -> None:
    """Write a number on its colour alone, free of any hatching."""
    ground = {"facecolor": color, "edgecolor": "none", "pad": 0.8}
    text = axes.text(x, y, f"{n:,}", ha="center", va="center", bbox=ground)
    text.set(fontsize=7.5, color=ink_on(color))
