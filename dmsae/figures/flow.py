"""The flow: each core as a column, and bands of the latents that the next cycle keeps, adds and drops."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dmsae.figures.canvas import set_title
from dmsae.figures.data import FlowData, Origin
from dmsae.figures.legends import FOREIGN_HATCH, OriginColors, color_origins, explain_origins
from dmsae.figures.themes import Color, Look

HALF_WIDTH = 0.11
"""Of a column; columns stand 1 apart."""
GAP = 0.06
"""Between the columns and what is dropped below them, of the highest column."""
MOST_LABELLED = 16

Span = tuple[float, float]
"""From where to where something reaches upwards."""


def size_of(data: FlowData) -> tuple[float, float]:
    """Give width and height in inches."""
    return min(16.0, max(7.0, 2.6 + 1.0 * len(data.stages))), 4.6


def paint_flow(figure: Figure, look: Look, data: FlowData) -> None:
    """Draw each core as a column by origin; what the next cycle drops flows down below the line."""
    set_title(figure, "Latents through the cycles: kept, new and dropped", data.subject)
    axes, job_id = figure.subplots(), data.subject.job_id
    colors = color_origins(look, data.origins, job_id)
    highest = max(sum(stage.totals.values()) for stage in data.stages)
    for place, stage in enumerate(data.stages):
        columns = _stacked(stage.totals, colors)
        for origin, (low, high) in columns.items():
            is_new = bool(stage.new.get(origin)) and stage.cycle_index is not None
            block = Rectangle((place - HALF_WIDTH, low), 2 * HALF_WIDTH, high - low)
            block.set(facecolor=colors[origin], edgecolor=look.ink if is_new else look.ground)
            block.set(
                linewidth=1.1 if is_new else 0.5, hatch=None if origin.job_id == job_id else FOREIGN_HATCH
            )
            block.set_gid(f"core-{_name(stage.cycle_index)}-{origin.job_id}-{origin.cycle}")
            axes.add_patch(block)
        if place > 0:
            _join(axes, data, place, colors=colors, floor=-GAP * highest)
        if len(data.stages) <= MOST_LABELLED:
            _label(axes, look, data, place, floor=-GAP * highest)
    _finish(axes, look, data, highest=highest)
    explain_origins(figure, axes, look, colors, job_id=job_id)


def _stacked(counts: Mapping[Origin, int], colors: OriginColors) -> dict[Origin, Span]:
    spans: dict[Origin, Span] = {}
    low = 0
    for origin in colors:
        if counts.get(origin):
            spans[origin] = (low, low + counts[origin])
            low += counts[origin]
    return spans


def _join(axes: Axes, data: FlowData, place: int, *, colors: OriginColors, floor: float) -> None:
    """Draw the bands between a column and the one before it, and of what it dropped."""
    before, stage, dropped = data.stages[place - 1], data.stages[place], data.dropped(place)
    sources, targets = _stacked(before.totals, colors), _stacked(stage.totals, colors)
    low = floor
    for origin, (bottom, top) in sources.items():
        lost = dropped.get(origin, 0)
        if lost:
            _band(axes, place, (bottom, bottom + lost), (low - lost, low), color=colors[origin], alpha=0.22)
            block = Rectangle((place - HALF_WIDTH, low - lost), 2 * HALF_WIDTH, lost)
            block.set(facecolor=colors[origin], edgecolor=colors[origin], linewidth=0.8, alpha=0.55)
            block.set_gid(f"dropped-{_name(stage.cycle_index)}-{origin.job_id}-{origin.cycle}")
            axes.add_patch(block)
            low -= lost
        if stage.kept.get(origin):
            start = targets[origin][0]
            kept = (start, start + stage.kept[origin])
            _band(axes, place, (bottom + lost, top), kept, color=colors[origin], alpha=0.45)


def _band(axes: Axes, place: int, left: Span, right: Span, *, color: Color, alpha: float) -> None:
    from_x, to_x = place - 1 + HALF_WIDTH, place - HALF_WIDTH
    middle = (from_x + to_x) / 2
    points = [
        (from_x, left[0]), (middle, left[0]), (middle, right[0]), (to_x, right[0]),
        (to_x, right[1]), (middle, right[1]), (middle, left[1]), (from_x, left[1]), (from_x, left[0]),
    ]  # fmt: skip
    curve = [Path.CURVE4] * 3
    codes = [Path.MOVETO, *curve, Path.LINETO, *curve, Path.CLOSEPOLY]
    axes.add_patch(PathPatch(Path(points, codes), facecolor=color, edgecolor="none", alpha=alpha))


def _label(axes: Axes, look: Look, data: FlowData, place: int, *, floor: float) -> None:
    stage, dropped = data.stages[place], sum(data.dropped(place).values())
    n, n_new = sum(stage.totals.values()), sum(stage.new.values())
    new = f"\n+{n_new:,} new" if n_new and place > 0 else ""
    beside: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
    axes.annotate(f"{n:,}{new}", (place, n), (0, 3), va="bottom", **beside)
    if dropped:
        at = (place, floor - dropped)
        axes.annotate(f"−{dropped:,}", at, (0, -3), va="top", color=look.soft, **beside)


def _finish(axes: Axes, look: Look, data: FlowData, *, highest: int) -> None:
    deepest = max(sum(data.dropped(place).values()) for place in range(len(data.stages)))
    bottom = -GAP * highest - deepest if deepest else 0
    room = 0.13 * (highest - bottom)
    axes.set(xlim=(-0.4, len(data.stages) - 0.6), ylim=(bottom - (room if deepest else 0), highest + room))
    axes.axhline(0, color=look.line, linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(data.stages)), [_name(stage.cycle_index) for stage in data.stages])
    axes.set_yticks([tick for tick in MaxNLocator(integer=True).tick_values(0, highest) if tick <= highest])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set(xlabel="core after cycle (below the line: what it dropped of the core before)", ylabel="latents")


def _name(cycle_index: int | None) -> str:
    return "given" if cycle_index is None else str(cycle_index)
