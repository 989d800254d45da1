"""How does a drawing become bytes? The same bytes for the same data, one drawing at a time.

Settings of matplotlib are the process's, so a lock keeps drawings apart; nothing here knows pyplot or a
window. Text becomes outlines: it looks the same in every browser and on paper, whatever fonts there are, and
no name of a job is ever markup. Nor is it mathematics: `text.parse_math` is off.
"""

import io
import threading
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from dmsae.figures.data import Subject, Theme
from dmsae.figures.themes import LOOKS, Look

Paint = Callable[[Figure, Look], None]

FONT = "DejaVu Sans"
"""Which matplotlib brings along."""
LONGEST_TITLE = 80
DPI = {"png": 200, "svg": 110}
"""Dots per inch; in an SVG only what lies in it as an image has any."""
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SETTINGS: dict[str, Any] = {
    "font.family": [FONT],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.use_mathtext": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.2,
    "svg.fonttype": "path",
    "svg.hashsalt": "dmsae",
    "text.parse_math": False,
    "text.usetex": False,
}

_lock = threading.Lock()


def render(paint: Paint, *, size: tuple[float, float], form: str, theme: Theme) -> bytes:
    """Paint a figure of a size in inches, and give it as SVG or PNG."""
    look, sink = LOOKS[theme], io.BytesIO()
    settings: Any = {**SETTINGS, **look.settings()}  # its stub lists every name there is
    with _lock, mpl.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        canvas = FigureCanvasSVG(figure) if form == "svg" else FigureCanvasAgg(figure)
        paint(figure, look)
        told = {"Date": None, "Creator": "DMSAE"} if form == "svg" else {"Software": "DMSAE"}
        canvas.figure.savefig(sink, format=form, dpi=DPI[form], metadata=told)
    return sink.getvalue()


def set_title(figure: Figure, what: str, subject: Subject | None = None) -> None:
    """Put above a figure what it shows, and of which job."""
    of = "" if subject is None else f"\n{drawable(subject.title, most=LONGEST_TITLE)}"
    figure.suptitle(f"{what}{of}", fontsize=10, x=0.02, ha="left")


def drawable(text: str, *, most: int = 200) -> str:
    """Give a text on one line, shortened, with a sign in place of each character that the font lacks."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * most])
    plain = " ".join(plain.split())
    short = plain if len(plain) <= most else f"{plain[: most - 1]}…"
    known = font_manager.get_font(font_manager.findfont(FONT)).get_charmap()
    return "".join(letter if ord(letter) in known else UNKNOWN for letter in short)


def plain_number(value: float, _: object = None) -> str:
    """Write a tick of a logarithmic axis that spans little: of each decade those at 1, 2 and 5."""
    return f"{value:g}" if f"{value:e}"[:3] in ("1.0", "2.0", "5.0") else ""


def power_of_ten(value: float, _: object = None) -> str:
    """Write a tick of a logarithmic axis; ticks between the powers have no label."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{abs(value):.0e}".split("e")
    sign = "−" if value < 0 else ""
    return f"{sign}10{str(int(exponent)).translate(SUPERSCRIPTS)}" if mantissa == "1" else ""
