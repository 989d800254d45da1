"""The curves: loss, explained variance, L0 and dead latents by step, a line for each cycle."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from dmsae.figures.canvas import plain_number, set_title
from dmsae.figures.data import CURVES, CurvesData
from dmsae.figures.legends import MOST_NAMED, add_scale
from dmsae.figures.themes import Look

LOG_RANGE = 20
"""A loss that falls by more than this factor is shown on a logarithmic axis."""


def size_of(_: CurvesData) -> tuple[float, float]:
    """Give width and height in inches."""
    return 8.0, 5.4


def paint_curves(figure: Figure, look: Look, data: CurvesData) -> None:
    """Draw one panel for each figure of a step."""
    set_title(figure, "Training, step by step", data.subject)
    panels = figure.subplots(2, 2, sharex=True).flatten()
    colors = look.ordered(len(data.curves))
    for axes, (name, label) in zip(panels, CURVES.items(), strict=True):
        for curve, color in zip(data.curves, colors, strict=True):
            values = [math.nan if value is None else value for value in curve.values[name]]
            (line,) = axes.plot(curve.steps, values, color=color, label=f"cycle {curve.cycle_index}")
            line.set(marker="o" if len(values) == 1 else "", gid=f"{name}-{curve.cycle_index}")
        axes.set_title(label, loc="left")
        axes.grid()
    for axes in panels[2:]:
        axes.set_xlabel("step")
    _show_loss(panels[0], data)
    cycles = [curve.cycle_index for curve in data.curves]
    if len(cycles) > MOST_NAMED:
        add_scale(figure, list(panels), look, cycles, label="cycle")
    else:
        lines = [
            Line2D([], [], color=color, label=f"cycle {cycle}")
            for cycle, color in zip(cycles, colors, strict=True)
        ]
        figure.legend(handles=lines, loc="outside right upper")


def _show_loss(axes: Axes, data: CurvesData) -> None:
    known = [value for curve in data.curves for value in curve.values["loss"] if value is not None]
    if known and min(known) > 0 and max(known) > LOG_RANGE * min(known):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(plain_number))
        axes.yaxis.set_minor_formatter(FuncFormatter(plain_number))
