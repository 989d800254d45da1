"""What do the colours of origins and cycles mean, and how is that told, whether there are three or sixty?"""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from dmsae.figures.canvas import drawable
from dmsae.figures.data import Origin
from dmsae.figures.themes import Color, Look

MOST_NAMED = 12
"""Cycles in a legend; more are told by a scale."""
FOREIGN_HATCH = "////"

OriginColors = Mapping[Origin, Color]


def color_origins(look: Look, origins: Sequence[Origin], job_id: str) -> OriginColors:
    """Give each origin a colour: greys for other jobs, the scale for the job's own cycles in order."""
    own = [origin for origin in origins if origin.job_id == job_id]
    foreign = [origin for origin in origins if origin.job_id != job_id]
    colors = dict(zip(foreign, look.foreign(len(foreign)), strict=True))
    return colors | dict(zip(own, look.ordered(len(own)), strict=True))


def explain_origins(figure: Figure, axes: Axes, look: Look, colors: OriginColors, *, job_id: str) -> None:
    """Tell which colour is which origin, beside the axes: the last on top, as bars are stacked."""
    own = [origin for origin in colors if origin.job_id == job_id]
    foreign = [origin for origin in colors if origin.job_id != job_id]
    shown = colors
    if len(own) > MOST_NAMED:
        add_scale(figure, axes, look, [origin.cycle for origin in own], label="learned in cycle")
        shown = {origin: colors[origin] for origin in foreign}
    patches = [_patch(origin, colors[origin], is_own=origin.job_id == job_id) for origin in shown]
    patches, n_more = patches[-2 * MOST_NAMED :], max(0, len(patches) - 2 * MOST_NAMED)
    if patches:
        title = "learned in" if n_more == 0 else f"learned in ({n_more} more origins)"
        axes.legend(
            handles=patches[::-1],
            title=title,
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            borderaxespad=0.0,
            alignment="left",
        )


def add_scale(figure: Figure, axes: object, look: Look, cycles: Sequence[int], *, label: str) -> None:
    """Put a scale of cycles beside the axes."""
    colors = ScalarMappable(Normalize(min(cycles), max(cycles)), look.scale())
    bar = figure.colorbar(colors, ax=axes, label=label, pad=0.02, fraction=0.05)  # type: ignore[arg-type]
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))


def _patch(origin: Origin, color: Color, *, is_own: bool) -> Patch:
    label = (
        f"cycle {origin.cycle}" if is_own else f"cycle {origin.cycle} of {drawable(origin.job_id, most=24)}"
    )
    return Patch(facecolor=color, hatch=None if is_own else FOREIGN_HATCH, label=label)
