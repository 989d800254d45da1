"""Density against score: how often each latent of a core is active, and how much it matters."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dmsae.figures.canvas import power_of_ten, set_title
from dmsae.figures.data import DensityData, Point
from dmsae.figures.legends import color_origins, explain_origins
from dmsae.figures.themes import Look

SMALLEST_SCALED = 1e-30
"""A score below it in size lies on zero."""
MOST_OUTLINED = 4000
"""Points that are drawn one by one into an SVG; more lie in it as an image."""


def size_of(_: DensityData) -> tuple[float, float]:
    """Give width and height in inches."""
    return 7.0, 4.4


def paint_density(figure: Figure, look: Look, data: DensityData) -> None:
    """Draw a point for each latent, coloured by origin; what a logarithmic axis cannot show is counted."""
    set_title(figure, f"Density against score, core of cycle {data.cycle_index}", data.subject)
    axes, job_id = figure.subplots(), data.subject.job_id
    known = [point for point in data.points if point.density and point.score is not None]
    origins = sorted({point.origin for point in known}, key=lambda origin: (origin.job_id == job_id, origin))
    colors = color_origins(look, origins, job_id)
    for origin, color in colors.items():
        points = [(point.density, point.score) for point in known if point.origin == origin]
        marker = "o" if origin.job_id == job_id else "^"
        (dots,) = axes.plot(*zip(*points, strict=True), marker, color=color, markersize=4.5, alpha=0.7)
        dots.set(markeredgecolor=look.ground, markeredgewidth=0.3, rasterized=len(known) > MOST_OUTLINED)
        dots.set_gid(f"origin-{origin.job_id}-{origin.cycle}")
    _scale(axes, known)
    axes.set(xlabel=_axis_label(data, n_shown=len(known)), ylabel="score")
    axes.grid()
    if colors:
        explain_origins(figure, axes, look, colors, job_id=job_id)


def _scale(axes: Axes, known: list[Point]) -> None:
    axes.set_xscale("log")
    scores = [point.score for point in known if point.score is not None]
    smallest = max(SMALLEST_SCALED, min((abs(score) for score in scores if score), default=1.0))
    if scores and min(scores) > 0:
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=10.0 ** math.floor(math.log10(smallest)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(power_of_ten))
        axis.set_minor_formatter(FuncFormatter(power_of_ten))


def _axis_label(data: DensityData, *, n_shown: int) -> str:
    n_silent = sum(point.density == 0 for point in data.points)
    told = [f"{n_shown:,} of {data.n_latents:,} latents"]
    told += [f"{n_silent:,} with density 0 are not shown"] if n_silent else []
    return f"density (share of tokens on which it is active); {'; '.join(told)}"
