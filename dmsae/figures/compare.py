"""The comparison: loss recovered, explained variance and CE increase, over k or seeds, with error bars."""

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from dmsae.figures.canvas import drawable, set_title
from dmsae.figures.comparison import ALL_SEEDS, BARS, MEASURES, CompareData, Estimate, Series
from dmsae.figures.themes import MARKERS, Look

Line = tuple[Series, int | None]
"""A series; over seeds one for each k, whose values mean different things."""

PREFIXES = ("most nested prefix", "whole SAE")
SPREAD = 0.5
"""How far apart the points of all lines at one place lie; places are 1 apart."""
COLUMNS = 2
"""Of the legend."""
PANELS_IN, LINE_IN = 5.2, 0.17
"""Height of all panels, and of a line of legend or notes."""
LETTERS_PER_IN = 17
MOST_LINES = 40
"""Of these the first are drawn."""
MOST_TOLD = 3
"""Missing controls that are named one by one."""


def size_of(data: CompareData) -> tuple[float, float]:
    """Give width and height in inches."""
    width = min(16.0, max(9.0, 1.5 * len(_places(data))))
    return width, PANELS_IN + LINE_IN * (_n_legend_rows(data) + len(_notes(data, width))) + 0.35


def paint_compare(figure: Figure, look: Look, data: CompareData) -> None:
    """Draw a panel for each measure of the most nested prefix, and below it of the whole SAE."""
    over = {"k": "over k", "seed": "over seeds"}[data.over]
    set_title(figure, f"{len(data.jobs)} jobs {over}, by the last cycle of each")
    panels = figure.subplots(2, 3, sharex=True).flatten()
    places, estimates = _places(data), list(data.estimates())
    handles: list[ErrorbarContainer] = []
    for i, (axes, measure) in enumerate(zip(panels, MEASURES, strict=True)):
        of_measure = [found for found in estimates if found.measure == measure]
        handles = _draw(axes, look, data, of_measure, places=places) or handles
        axes.set_title(f"{MEASURES[measure]}, {PREFIXES[i // 3]}", loc="left")
        axes.set_xticks(range(len(places)), [str(place) for place in places])
        axes.set_xlim(-0.6, len(places) - 0.4)
        axes.grid(axis="y")
    for axes in panels[3:]:
        axes.set_xlabel("k" if data.over == "k" else "seed")
    _tell(figure, look, data, handles)


def _tell(figure: Figure, look: Look, data: CompareData, handles: Sequence[ErrorbarContainer]) -> None:
    """Put legend and notes into a band below the panels, which the layout of these leaves free."""
    width, height = figure.get_size_inches()
    notes = _notes(data, width)
    band = (LINE_IN * (_n_legend_rows(data) + len(notes)) + 0.3) / height
    figure.set_layout_engine("constrained", rect=(0.0, band, 1.0, 1.0 - band))
    figure.text(
        0.02, 0.1 / height, "\n".join(notes), fontsize=7.5, color=look.soft, va="bottom", linespacing=1.5
    )
    at = (0.012, (LINE_IN * len(notes) + 0.1) / height)
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=at, ncols=COLUMNS, borderaxespad=0.0)


def _draw(
    axes: Axes, look: Look, data: CompareData, found: Sequence[Estimate], *, places: Mapping[int | str, int]
) -> list[ErrorbarContainer]:
    lines = _lines(data)
    drawn = []
    for i, line in enumerate(lines):
        shift = SPREAD * ((i + 0.5) / len(lines) - 0.5)
        points = [estimate for estimate in found if _line_of(data, estimate.series, estimate.k) == line]
        xs = [places[estimate.at] + shift for estimate in points]
        bars = axes.errorbar(
            xs,
            [estimate.mean for estimate in points],
            yerr=[estimate.sd or 0.0 for estimate in points],
            color=look.series[i % len(look.series)],
            marker=MARKERS[i % len(MARKERS)],
            linestyle="-" if data.over == "k" and len(points) > 1 else "",
            linewidth=1,
            markersize=5,
            capsize=2.5,
            label=_label(line),
        )
        bars.lines[0].set_gid(f"{found[0].measure}-{i}" if found else None)
        drawn.append(bars)
    return drawn


def _lines(data: CompareData) -> list[Line]:
    return _all_lines(data)[:MOST_LINES]


def _all_lines(data: CompareData) -> list[Line]:
    return list(dict.fromkeys(_line_of(data, job.series, job.k) for job in data.jobs))


def _line_of(data: CompareData, series: Series, k: int) -> Line:
    has_several = data.over == "seed" and len({job.k for job in data.jobs}) > 1
    return series, k if has_several else None


def _label(line: Line) -> str:
    series, k = line
    return drawable(series.label if k is None else f"{series.label}, k = {k}", most=90)


def _places(data: CompareData) -> dict[int | str, int]:
    if data.over == "k":
        values: list[int | str] = sorted({job.k for job in data.jobs})
    else:
        values = [*sorted({job.seed for job in data.jobs}), ALL_SEEDS]
    return {value: place for place, value in enumerate(values)}


def _n_legend_rows(data: CompareData) -> int:
    return -(-len(_lines(data)) // COLUMNS)


def _notes(data: CompareData, width: float) -> list[str]:
    """Say in lines of the figure's width what its points mean, and what it lacks."""
    told = [BARS, *(drawable(gap.sentence) for gap in data.missing[:MOST_TOLD])]
    if len(data.missing) > MOST_TOLD:
        told.append(f"{len(data.missing) - MOST_TOLD} more controls are missing: see the CSV.")
    if (n_more := len(_all_lines(data)) - MOST_LINES) > 0:
        told.append(f"{n_more} more series are not drawn: see the CSV.")
    if data.n_controls_left:
        told.append(data.left_sentence)
    if data.left_out:
        told.append(f"Not among them, since they have not succeeded: {len(data.left_out)} of those named.")
    return [line for note in told for line in textwrap.wrap(note, int(LETTERS_PER_IN * width))]
