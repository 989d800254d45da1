"""Which colours do figures have, in light and dark? Such as every eye tells apart, by lightness alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.colors import Colormap, ListedColormap

from dmsae.figures.data import Theme

Color = tuple[float, float, float, float]

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
"""One for each series, so that colour is never all that tells them apart."""


@dataclass(frozen=True)
class Look:
    """The colours of one theme."""

    ground: str
    ink: str
    soft: str
    line: str
    scale_from: float
    scale_to: float
    """The part of viridis that stands out from the ground."""
    series: Sequence[str]
    """Of Okabe and Ito, darker or lighter for the ground."""

    def settings(self) -> dict[str, Any]:
        """Give matplotlib's settings."""
        inks = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor")
        grounds = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
        lines = ("axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
        return {
            **dict.fromkeys(inks, self.ink),
            **dict.fromkeys(grounds, self.ground),
            **dict.fromkeys(lines, self.line),
        }

    def scale(self) -> Colormap:
        """Give the scale for what has an order, such as cycles."""
        part = self.scale_to - self.scale_from
        return ListedColormap(
            [mpl.colormaps["viridis"](self.scale_from + part * i / 255) for i in range(256)]
        )

    def ordered(self, n: int) -> list[Color]:
        """Give as many colours of the scale, from first to last."""
        scale = self.scale()
        return [scale(i / (n - 1) if n > 1 else 0.35) for i in range(n)]

    def foreign(self, n: int) -> list[Color]:
        """Give as many greys, for what comes from elsewhere."""
        return [(grey, grey, grey, 1.0) for grey in (0.45 + 0.3 * i / max(n - 1, 1) for i in range(n))]


LOOKS: Mapping[Theme, Look] = {
    "light": Look(
        ground="#ffffff",
        ink="#1a1e24",
        soft="#4c5664",
        line="#7b8594",
        scale_from=0.0,
        scale_to=0.93,
        series=("#0072b2", "#c24d00", "#007a57", "#a3457f", "#8a6100", "#2f7fb0", "#1a1e24", "#6f6f6f"),
    ),
    "dark": Look(
        ground="#1c2026",
        ink="#e8ebf0",
        soft="#adb6c3",
        line="#7e8897",
        scale_from=0.26,
        scale_to=1.0,
        series=("#56b4e9", "#ff9a4d", "#3ed6a4", "#e79ac6", "#f0c33c", "#a9d4f2", "#e8ebf0", "#a8a8a8"),
    ),
}


def ink_on(color: Color) -> str:
    """Give black or white, whichever is read better on a colour."""
    red, green, blue = color[:3]
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#ffffff"
